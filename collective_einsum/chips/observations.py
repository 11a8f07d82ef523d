"""What compilers were observed to make of dots and memory passes on a chip: records and their files.

`python -m bench calibrate --target v4:2x2x1` compiles small programs and writes such a file, one for
each chip and version of libtpu, into the folder `observed`; `--target attached` times the dots on the
devices that are there.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

FOLDER = "observed"
_FILE = re.compile(r"(?P<name>\w+)-libtpu-(?P<version>\d+(?:\.\d+)*)\.json")

Source = Literal["bundles", "estimate", "measured"]
# How a dot's result is scattered, if it is: whole, by lax, or in chunks along a ring.
Scattered = Literal["", "whole", "ring"]
PassKind = Literal["add", "add int8", "add halves", "slice", "move", "exchange", "copy int8"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotObservation:
    """A dot of [rows, contracted] and [contracted, columns] as a compiler made it.

    The left operand was in on-chip memory, unless it is too large for it; the right operand, a slice of
    a stack, in HBM. A dot that adds to a sum is one in the middle of an all-gather's ring: its left
    operand is where a hop left it, and the sum where the dot before left it.

    Attributes:
      rows, contracted, columns: its sizes.
      lhs, rhs: dtypes of the operands, such as "bfloat16".
      adds: whether it adds to a sum of 32 bits, which is its result.
      scattered: "whole" where lax's reduce-scatter takes the result, "ring" where a ring does, of whose
        chunks this is one; nothing has brought the left operand into on-chip memory. "" for others.
      gathered: whether lax's all-gather of its columns left the left operand, laid out as it likes and
        in memory of its choice.
      cycles: clock cycles that it takes.
      source: "bundles" where they follow from the bundles that are issued and from the HBM bytes,
        "estimate" where they are the compiler's own `estimated_cycles`, "measured" where they are the
        clock cycles of seconds that were timed on a device.
    """

    rows: int
    contracted: int
    columns: int
    lhs: str
    rhs: str
    adds: bool
    scattered: Scattered
    gathered: bool
    cycles: int
    source: Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class PassObservation:
    """What a schedule's program does beside its dots and its communication, as a compiler made it.

    Kinds, each of an array [rows, columns] whose columns are split over four devices, but for the last:

    * "add": a scatter's ring adds a block that arrived; "add int8": where the weights are int8;
    * "add halves": a scatter's ring that sends half of every block either way adds all of them;
    * "slice": a device takes its block of what lax's reduce-scatter left;
    * "move": blocks are moved apart before a reduce-scatter of a dimension of their own;
    * "exchange": they are moved apart before an all-to-all, and what arrived is added up;
    * "copy int8": weights [rows, columns] of int8, sliced by rows for the dots of a ring, are copied.

    Attributes:
      kind: one of these.
      rows, columns: sizes of the array.
      bytes: bytes of the array; where it adds, all that are read and written.
      cycles: clock cycles that it takes.
      source: as a dot's; never "measured".
      lowered: what the compiler made of it: of lax's collective in "slice" an "all-reduce" or a
        "reduce-scatter"; of "copy int8" whether weights are copied "during a hop", the ring's first, or
        before it, ""; "" for all others.
    """

    kind: PassKind
    rows: int
    columns: int
    bytes: int
    cycles: int
    source: Source
    lowered: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observations:
    """What one version of a compiler makes of dots and memory passes on one chip.

    Attributes:
      chip: the chip's name.
      compiler: the compiler and its version, such as "libtpu 0.0.50.1".
      jax: the version of jax that lowered the programs.
      command: makes the file again.
      clock_hz: cycles/s that `cycles` count.
      dots: the dots.
      passes: the memory passes.
    """

    chip: str
    compiler: str
    jax: str
    command: str
    clock_hz: float
    dots: tuple[DotObservation, ...]
    passes: tuple[PassObservation, ...]

    @property
    def measured(self) -> bool:
        """Whether the dots were timed on a device; if not, what they take is predicted."""
        return all(dot.source == "measured" for dot in self.dots)

    @classmethod
    def from_json(cls, text: str) -> Observations:
        """Reads the text of a file.

        Raises:
          ValueError: it is no such text.
        """
        try:
            fields = json.loads(text)
            dots = tuple(DotObservation(**row) for row in fields.pop("dots"))
            passes = tuple(PassObservation(**row) for row in fields.pop("passes"))
            return cls(dots=dots, passes=passes, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is no file of observations ({error}); `python -m bench calibrate` writes one"
            ) from error

    def to_json(self) -> str:
        """The text of a file: one line for each observation."""
        lists = {"dots": self.dots, "passes": self.passes}
        fields = {k: v for k, v in vars(self).items() if k not in lists}
        parts = [json.dumps(fields, indent=1).removesuffix("\n}")]
        for name, records in lists.items():
            rows = ",\n  ".join(json.dumps(dataclasses.asdict(one)) for one in records)
            parts.append(f' "{name}": [\n  {rows}\n ]')
        return ",\n".join(parts) + "\n}\n"


def file_name(name: str, version: str) -> str:
    """The name of the file of a chip, by its short name, such as "v4", and a version of libtpu."""
    return f"{name}-libtpu-{version}.json"


def observed(name: str) -> Observations | None:
    """The observations of a chip by its short name, by the installed version of libtpu, the nearest
    one, or, where none is installed, the newest one; None where there are none."""
    return nearest(name, _installed())


@functools.cache
def nearest(name: str, version: str | None) -> Observations | None:
    """The observations of a chip by the nearest version of libtpu, and by the newest for None."""
    files = _files().get(name)
    if not files:
        return None
    chosen = nearest_version(tuple(files), version)
    return Observations.from_json(files[chosen].read_text(encoding="utf-8"))


def nearest_version(known: Sequence[str], version: str | None) -> str:
    """The version itself where it is known; else the last one before it, or the first one of all where
    none is before it. The newest for None."""
    ordered = sorted(known, key=_numbers)
    if version is None:
        return ordered[-1]
    before = [one for one in ordered if _numbers(one) <= _numbers(version)]
    return before[-1] if before else ordered[0]


@functools.cache
def _installed() -> str | None:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _files() -> Mapping[str, Mapping[str, Any]]:
    """Files by chip and version."""
    files: dict[str, dict[str, Any]] = {}
    folder = importlib.resources.files(__package__ or "") / FOLDER
    for file in folder.iterdir() if folder.is_dir() else ():
        if match := _FILE.fullmatch(file.name):
            files.setdefault(match["name"], {})[match["version"]] = file
    return files


def observed_folder() -> Path:
    """The folder of the files in a checkout."""
    return Path(__file__).parent / FOLDER


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", version))
