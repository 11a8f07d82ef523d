"""The seconds of a timeline by source line of the caller's program."""

from __future__ import annotations

import dataclasses
import itertools
import linecache
import os
from collections.abc import Iterable, Sequence

from collective_einsum.ruler.hlo.stack_frames import SourceLine
from collective_einsum.ruler.replay.events import COMPUTE_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.tables import Table

# The number of lines printed: those with the most seconds.
_SHOWN = 12
# The width of the column of lines, in characters; the other columns take the rest of a terminal.
_NAME_WIDTH = 70
_MEANINGS = {
    "line": "the innermost line outside collective_einsum and libraries of layers that the ops were "
    "traced from, after the line that calls its function",
    "us": "the sum of the next three",
    "compute": "the chip computes",
    "exposed": "it waits for a transfer between chips",
    "copies": "it waits for its own memory",
    "share": "of the total",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LineSeconds:
    """Seconds of the ops that were traced from one source line.

    Attributes:
      line: the line; None for ops that the compiler made, or of a module without such metadata.
      callers: the lines of the calls that led there, the innermost first, as many as were asked for.
      compute: seconds in which the chip computes.
      exposed: seconds in which it waits for a transfer between chips.
      copies: seconds in which it waits for its own memory.
    """

    line: SourceLine | None
    callers: tuple[SourceLine, ...] = ()
    compute: float
    exposed: float
    copies: float

    @property
    def seconds(self) -> float:
        """`compute + exposed + copies`."""
        return self.compute + self.exposed + self.copies


def by_line(events: Iterable[Event], callers: int = 0) -> tuple[LineSeconds, ...]:
    """The seconds of every source line, the longest first; together they are the total.

    Args:
      events: events of a timeline.
      callers: how many calls that led to a line distinguish it from the same line called elsewhere.
    """
    lines: dict[tuple[SourceLine, ...], dict[str, float]] = {}
    for event in events:
        if event.row not in (COMPUTE_ROW, STALL_ROW):
            continue
        key = event.lines[: callers + 1]
        seconds = lines.setdefault(key, {"compute": 0.0, "collective": 0.0, "copy": 0.0})
        seconds["compute" if event.row == COMPUTE_ROW else event.kind] += event.seconds
    rows = [
        LineSeconds(
            line=key[0] if key else None,
            callers=key[1:],
            compute=seconds["compute"],
            exposed=seconds["collective"],
            copies=seconds["copy"],
        )
        for key, seconds in lines.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def line_table(rows: Sequence[LineSeconds], total_seconds: float) -> Table:
    """The lines with the most seconds, in microseconds."""
    us, total = 1e6, total_seconds or 1.0
    cells = [
        (
            _named(row),
            *(f"{s * us:.2f}" for s in (row.seconds, row.compute, row.exposed, row.copies)),
            f"{row.seconds / total:.1%}",
        )
        for row in rows[:_SHOWN]
    ]
    left = sum(row.seconds for row in rows[_SHOWN:])
    if left:
        count = len(rows) - _SHOWN
        cells.append(
            (f"{count} other lines", f"{left * us:.2f}", "", "", "", f"{left / total:.1%}")
        )
    return Table(rows=tuple(cells), meanings=_MEANINGS)


def _named(row: LineSeconds) -> str:
    """A line with its function, after the line of its caller."""
    if row.line is None:
        return "(of no line)"
    lines = [*reversed(row.callers), row.line]
    names = [short_path(lines[0])]
    for caller, line in itertools.pairwise(lines):
        # A file's name is not repeated within a row.
        names.append(str(line.line) if caller.file == line.file else short_path(line))
    text = " > ".join(
        # A nested function is named without the functions around it.
        f"{name} {line.function.rpartition('<locals>.')[2]}".strip()
        for name, line in zip(names, lines, strict=True)
    )
    return text if len(text) <= _NAME_WIDTH else f"...{text[3 - _NAME_WIDTH :]}"


def short_path(line: SourceLine) -> str:
    """The name of a line: its path from the working directory, or by the end of its path."""
    path = os.path.relpath(line.file)
    if path.startswith(".."):
        path = "/".join(line.file.split("/")[-2:])
    return f"{path}:{line.line}"


def line_text(line: SourceLine) -> str:
    """The text of a line, as it is now in the file; "" where the file is not there."""
    return linecache.getline(line.file, line.line).strip()
