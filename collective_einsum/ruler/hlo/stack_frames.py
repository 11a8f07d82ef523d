"""The source lines that instructions were traced from, as the text of an HLO module lists them.

A module of jax 0.10 and later begins with four tables, FileNames, FunctionNames, FileLocations and
StackFrames, and an instruction's metadata names a stack frame. Older modules have `source_file` and
`source_line` in the metadata itself.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_TITLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_ENTRY = re.compile(r'(\d+) (?:"(.*)"|\{(.*)\})$')
_FIELD = re.compile(r"(\w+)=(\d+)")
_PACKAGE = Path(__file__).parents[2]
# Packages whose layers a model is built of: where they are installed, their lines are not the model's.
_LAYER_LIBRARIES = ("equinox", "flax", "haiku", "haliax", "jax", "optax")
_INSTALLED = re.compile(rf"/(?:site|dist)-packages/(?:{'|'.join(_LAYER_LIBRARIES)})/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceLine:
    """A line of a Python file.

    Attributes:
      file: the path, as it was when the program was traced.
      line: counted from 1.
      function: the qualified name of the function that it is in; "" where the module does not say.
    """

    file: str
    line: int
    function: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


# For each stack frame by its number: the lines of the call stack, the innermost first.
Stacks = Mapping[int, tuple[SourceLine, ...]]


def parse_stacks(lines: Iterable[str]) -> Stacks:
    """The call stacks in the tables at the beginning of a module; empty where there are none.

    Args:
      lines: lines of the module; the ones after the tables are not read.

    Raises:
      ValueError: a table names an entry of another that is not there.
    """
    tables = _tables(lines)
    files, functions, locations, frames = (tables[title] for title in _TITLES)
    fields = {
        title: {number: dict(_FIELD.findall(text)) for number, text in table.items()}
        for title, table in (("location", locations), ("frame", frames))
    }
    # XLA prints a parent's number plus one, so the first frame seems to be its own parent.
    first = fields["frame"].get(1, {}).get("parent_frame_id")
    shift = 1 if first == "1" else 0
    stacks: dict[int, tuple[SourceLine, ...]] = {}
    for number, frame in fields["frame"].items():
        try:
            location = fields["location"][int(frame["file_location_id"])]
            line = SourceLine(
                file=files[int(location["file_name_id"])],
                line=int(location["line"]),
                function=functions[int(location["function_name_id"])],
            )
        except KeyError:
            raise ValueError(
                f"stack frame {number} of the HLO module names a place that its tables do not list; "
                "pass the whole text"
            ) from None
        parent = int(frame.get("parent_frame_id", "0")) - shift
        # Parents stand before their children.
        stacks[number] = (line, *stacks.get(parent, ()))
    return stacks


def callers_lines(stack: Sequence[SourceLine]) -> tuple[SourceLine, ...]:
    """The lines of a call stack in the caller's own code.

    Lines of `collective_einsum`, of installed libraries of layers (Flax, Haiku, Equinox, ...) and of
    Python's own start are not.

    Returns:
      The caller's lines, the innermost first; where there are none, those outside `collective_einsum`;
      where every line is this library's, the innermost line.
    """
    # "<frozen runpy>" and the like are Python's own.
    lines = [x for x in stack if not (_is_own(x.file) or x.file.startswith("<frozen "))]
    own = [line for line in lines if not _INSTALLED.search(line.file)]
    # jax puts the traced line on the stack twice.
    return tuple(line for line, _ in itertools.groupby(own or lines)) or tuple(stack[:1])


@functools.cache
def _is_own(file: str) -> bool:
    """Whether a file is one of this package, also by its path on another machine."""
    _, package, rest = file.rpartition(f"/{_PACKAGE.name}/")
    return bool(package) and (_PACKAGE / rest).is_file()


def _tables(lines: Iterable[str]) -> dict[str, dict[int, str]]:
    """The entries of each table, by number."""
    tables: dict[str, dict[int, str]] = {title: {} for title in _TITLES}
    title = None
    for line in lines:
        stripped = line.strip()
        if stripped in _TITLES:
            title = stripped
        elif match := _ENTRY.match(stripped):
            if title is not None:
                tables[title][int(match[1])] = match[2] if match[2] is not None else match[3]
        elif stripped and not stripped.startswith("HloModule"):
            break
    return tables
