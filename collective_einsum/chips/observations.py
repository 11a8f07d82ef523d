"""What compilers were observed to make of dots on a chip: the records, and the files that hold them.

`python -m bench calibrate --target v4:2x2x1` compiles the dots and writes such a file, one for each chip
and version of libtpu, into the folder `observed`; `--target attached` times them on the devices that are
there.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotObservation:
    """A dot of [rows, contracted] and [contracted, columns] as a compiler made it.

    The left operand, and a sum that the dot adds to, were in on-chip memory, unless they are too large
    for it; the right operand, a slice of a stack, in HBM.

    Attributes:
      rows, contracted, columns: its sizes.
      lhs, rhs: dtypes of the operands, such as "bfloat16".
      adds: whether it adds to a sum of 32 bits, which is its result.
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
    cycles: int
    source: Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observations:
    """What one version of a compiler makes of dots on one chip.

    Attributes:
      chip: the chip's name.
      compiler: the compiler and its version, such as "libtpu 0.0.50.1".
      jax: the version of jax that lowered the dots.
      command: makes the file again.
      clock_hz: cycles/s that `cycles` count.
      dots: the dots.
    """

    chip: str
    compiler: str
    jax: str
    command: str
    clock_hz: float
    dots: tuple[DotObservation, ...]

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
            return cls(dots=dots, **fields)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"this is no file of observations ({error}); `python -m bench calibrate` writes one"
            ) from error

    def to_json(self) -> str:
        """The text of a file: one line for each dot."""
        fields = {k: v for k, v in vars(self).items() if k != "dots"}
        head = json.dumps(fields, indent=1).removesuffix("\n}")
        rows = ",\n  ".join(json.dumps(dataclasses.asdict(dot)) for dot in self.dots)
        return f'{head},\n "dots": [\n  {rows}\n ]\n}}\n'


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
