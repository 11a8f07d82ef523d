"""What every collective of a timeline overlaps: dots, other compute, or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from collective_einsum.ruler.hlo.stack_frames import SourceLine
from collective_einsum.ruler.replay.events import COMPUTE_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.intervals import Intervals
from collective_einsum.ruler.replay.source_lines import short_path
from collective_einsum.ruler.replay.tables import Table

# The number of rows printed: those that the chip waits longest for.
_SHOWN = 12
_NAME_WIDTH, _LINE_WIDTH = 36, 30
_MEANINGS = {
    "collective": "an instruction that moves data between chips, with its kind where its name hides it; "
    "+n: with n more of its kind and source line",
    "runs": "how often",
    "us": "in flight, from its start to its arrival; the sum of the next four",
    "dots": "of these, the chip runs a dot",
    "compute": "it computes something else",
    "exposed": "it waits for this collective",
    "waits": "it waits for another transfer",
    "line": "your source line that it was traced from",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollectiveOverlap:
    """One collective instruction, over all its runs.

    Attributes:
      name: the instruction's name.
      op: the collective that it runs, such as "all-gather".
      runs: how often it runs.
      in_flight: seconds from its start to its arrival, summed over its runs.
      dots: seconds of these in which the chip runs a dot.
      compute: seconds in which it computes something else.
      exposed: seconds in which it waits for this collective.
      waits: seconds in which it waits for another transfer, between chips or memories.
      line: the caller's source line; None where the module does not say.
    """

    name: str
    op: str
    runs: int
    in_flight: float
    dots: float
    compute: float
    exposed: float
    waits: float
    line: SourceLine | None


def collective_overlaps(events: Sequence[Event]) -> tuple[CollectiveOverlap, ...]:
    """Every collective of a timeline, the one that the chip waits longest for first."""
    on_chip = [event for event in events if event.row == COMPUTE_ROW]
    dots = Intervals((e.start, e.end) for e in on_chip if e.kind == "dot")
    compute = Intervals((e.start, e.end) for e in on_chip if e.kind != "dot")
    stalls = [event for event in events if event.row == STALL_ROW]
    stalled = Intervals((e.start, e.end) for e in stalls)
    exposed: dict[str, float] = {}
    for stall in stalls:
        if stall.kind == "collective":
            exposed[stall.name] = exposed.get(stall.name, 0.0) + stall.seconds
    rows = []
    for name, runs in _runs(events).items():
        first = runs[0]
        flights = [(run.start, run.arrival or run.end) for run in runs]
        waited = exposed.get(name, 0.0)
        rows.append(
            CollectiveOverlap(
                name=name,
                op=first.op,
                runs=len(runs),
                in_flight=sum(end - start for start, end in flights),
                dots=sum(dots.covered(*flight) for flight in flights),
                compute=sum(compute.covered(*flight) for flight in flights),
                exposed=waited,
                waits=max(0.0, sum(stalled.covered(*flight) for flight in flights) - waited),
                line=first.lines[0] if first.lines else None,
            )
        )
    # Equal seconds may differ in their last bits; they keep the order of the schedule.
    return tuple(sorted(rows, key=lambda row: (-round(row.exposed, 12), -round(row.in_flight, 12))))


def _runs(events: Iterable[Event]) -> dict[str, list[Event]]:
    """One event for each run of every collective: one of those on its links, or where it loads none, its
    stall."""
    runs: dict[str, dict[float, Event]] = {}
    stalls: dict[str, dict[float, Event]] = {}
    for event in events:
        if event.row == STALL_ROW and event.kind == "collective":
            stalls.setdefault(event.name, {})[event.start] = event
        elif event.row != STALL_ROW and event.kind in ("permute", "collective"):
            runs.setdefault(event.name, {})[event.start] = event
    return {name: list(by_start.values()) for name, by_start in (stalls | runs).items()}


def overlap_table(rows: Sequence[CollectiveOverlap]) -> Table:
    """The collectives that the chip waits longest for, in microseconds; those of one kind that were
    traced from one source line, as in unrolled layers, are one row."""
    groups = _of_one_line(rows)
    cells = [
        (
            _shortened(_named(group), _NAME_WIDTH),
            *_sums(group),
            _shortened(short_path(line), _LINE_WIDTH) if (line := group[0].line) else "",
        )
        for group in groups[:_SHOWN]
    ]
    others = [row for group in groups[_SHOWN:] for row in group]
    if others:
        cells.append((f"{len(others)} others", *_sums(others), ""))
    return Table(rows=tuple(cells), meanings=_MEANINGS)


def _of_one_line(rows: Sequence[CollectiveOverlap]) -> list[list[CollectiveOverlap]]:
    """Collectives by kind and source line, the ones that the chip waits longest for first; those of
    which the module does not say the line stay alone."""
    groups: dict[object, list[CollectiveOverlap]] = {}
    for row in rows:
        groups.setdefault((row.op, row.line) if row.line else row.name, []).append(row)
    return sorted(groups.values(), key=lambda group: -round(sum(row.exposed for row in group), 12))


def _sums(rows: Sequence[CollectiveOverlap]) -> tuple[str, ...]:
    """Runs, and microseconds in flight and of what they overlap."""
    columns = zip(
        *((row.in_flight, row.dots, row.compute, row.exposed, row.waits) for row in rows),
        strict=True,
    )
    return str(sum(row.runs for row in rows)), *(f"{sum(column) * 1e6:.2f}" for column in columns)


def _named(group: Sequence[CollectiveOverlap]) -> str:
    row = group[0]
    name = row.name if len(group) == 1 else f"{row.name} +{len(group) - 1}"
    return name if not row.op or row.op in row.name else f"{name} {row.op}"


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else f"...{text[3 - width :]}"
