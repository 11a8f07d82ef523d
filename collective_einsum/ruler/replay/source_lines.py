"""Where the time goes by source line of the caller's program."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence

from collective_einsum.ruler.hlo.stack_frames import SourceLine
from collective_einsum.ruler.replay.events import COMPUTE_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.tables import legend, table

# The longest lines that are printed.
_SHOWN = 12
_MEANINGS = {
    "line": "the innermost line outside collective_einsum that the ops were traced from",
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
      compute: in which the chip computes.
      exposed: in which it waits for a transfer between chips.
      copies: in which it waits for its own memory.
    """

    line: SourceLine | None
    compute: float
    exposed: float
    copies: float

    @property
    def seconds(self) -> float:
        """`compute + exposed + copies`."""
        return self.compute + self.exposed + self.copies


def by_line(events: Iterable[Event]) -> tuple[LineSeconds, ...]:
    """The seconds of every source line, the longest first; together they are the total."""
    lines: dict[SourceLine | None, dict[str, float]] = {}
    for event in events:
        if event.row not in (COMPUTE_ROW, STALL_ROW):
            continue
        seconds = lines.setdefault(event.line, {"compute": 0.0, "collective": 0.0, "copy": 0.0})
        seconds["compute" if event.row == COMPUTE_ROW else event.kind] += event.seconds
    rows = [
        LineSeconds(
            line=line,
            compute=seconds["compute"],
            exposed=seconds["collective"],
            copies=seconds["copy"],
        )
        for line, seconds in lines.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.seconds))


def print_lines(rows: Sequence[LineSeconds], total_seconds: float) -> str:
    """The longest lines as a table in microseconds, with a legend."""
    us, total = 1e6, total_seconds or 1.0
    cells = [
        (
            _named(row.line),
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
    return f"{table(tuple(_MEANINGS), cells)}\n\n{legend(_MEANINGS)}"


def _named(line: SourceLine | None) -> str:
    """A line by its path from the working directory, or by the end of its path, and its function."""
    if line is None:
        return "(of no line)"
    path = os.path.relpath(line.file)
    if path.startswith(".."):
        path = "/".join(line.file.split("/")[-2:])
    text = f"{path}:{line.line}"
    return f"{text} {line.function}" if line.function else text
