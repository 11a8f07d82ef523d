"""Two timelines compared: the seconds of each group of ops in the one and in the other."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

from collective_einsum.ruler.hlo.stack_frames import SourceLine
from collective_einsum.ruler.replay.events import COMPUTE_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.source_lines import line_text, short_path
from collective_einsum.ruler.replay.tables import Table, wrapped
from collective_einsum.ruler.replay.timeline import Timeline

# The number of groups printed: those that differ most.
_SHOWN = 15
# Differences below a hundredth of a microsecond are not seen in the tables.
_LEAST_SECONDS = 5e-9
_NAME_WIDTH = 70
_KINDS = {
    "kind": "what the chip does: dots (ops that contain one), other compute, or waits for a transfer",
    "A us": "in the first program",
    "B us": "in the second",
    "B - A": "the difference, below zero where the second is faster",
    "of A": "the difference over the total of the first",
}
_GROUPS = {
    "line and kind": "the ops of one source line that do the same, those that differ most first; of "
    "A|of B where a line has another number in B and the same text",
    **{name: _KINDS[name] for name in ("A us", "B us", "B - A", "of A")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupSeconds:
    """Seconds of one group of ops in two programs.

    Attributes:
      line: the caller's source line; None for ops of no line, and in `Comparison.kinds`.
      line_b: the line of the second program that was matched with it, where that is another.
      kind: "dots", "other compute", or "waits for " and a collective, or "waits for HBM copies".
      a: seconds in the first program; 0 where it has no such ops.
      b: seconds in the second.
    """

    line: SourceLine | None
    kind: str
    a: float
    b: float
    line_b: SourceLine | None = None

    @property
    def difference(self) -> float:
        """`b - a`: below zero where the second program is faster."""
        return self.b - self.a


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two replayed programs, group by group: predictions, not measurements.

    Attributes:
      a: the timeline of the first program.
      b: the timeline of the second.
    """

    a: Timeline
    b: Timeline

    @functools.cached_property
    def groups(self) -> tuple[GroupSeconds, ...]:
        """Every source line and kind of op, the largest difference first; together, the totals."""
        return self._by(_line)

    @functools.cached_property
    def kinds(self) -> tuple[GroupSeconds, ...]:
        """Every kind of op, the largest difference first; together, the totals."""
        return self._by(lambda event: None)

    @property
    def difference(self) -> float:
        """Seconds that the second program takes more than the first."""
        return self.b.total_seconds - self.a.total_seconds

    def tables(self) -> Mapping[str, Table]:
        """The tables that `print` shows, by their titles."""
        tables = {"By kind": Table(rows=self._kind_rows(), meanings=_KINDS)}
        if any(group.line for group in self.groups):
            tables["By source line and kind"] = Table(rows=self._group_rows(), meanings=_GROUPS)
        return tables

    @property
    def conclusion(self) -> str:
        """One sentence: which program is faster, by how much, and where most of it comes from."""
        us, total = 1e6, self.a.total_seconds or 1.0
        text = f"So A is predicted to take {self.a.total_seconds * us:.2f} us and B "
        if abs(self.difference) < _LEAST_SECONDS:
            text += "the same"
        else:
            size = abs(self.difference)
            than = "less" if self.difference < 0 else "more"
            text += f"{self.b.total_seconds * us:.2f} us: {size * us:.2f} us ({size / total:.1%}) {than}"
        first = next(iter(self.groups), None)
        if first is None or abs(first.difference) < _LEAST_SECONDS:
            return f"{text}; no group of ops differs."
        sign = "less" if first.difference < 0 else "more"
        where = f" at {short_path(first.line)}" if first.line else ""
        return (
            f"{text}; the largest difference is in {first.kind}{where}: "
            f"{abs(first.difference) * us:.2f} us {sign}."
        )

    def __str__(self) -> str:
        lines = [
            f"A: {self.a.name} on {self.a.chip}; B: {self.b.name} on {self.b.chip}; replayed (predicted)"
        ]
        for title, table in self.tables().items():
            lines += ["", f"{title}:", "", str(table)]
        return "\n".join([*lines, "", *wrapped(self.conclusion)])

    def _by(self, line: Callable[[Event], SourceLine | None]) -> tuple[GroupSeconds, ...]:
        matches = _matches(*(map(line, timeline.events) for timeline in (self.a, self.b)))
        a = _seconds(self.a.events, line)
        b = {
            (matches.get(there, there), kind): (seconds, there)
            for (there, kind), seconds in _seconds(self.b.events, line).items()
        }
        groups = []
        for key in dict.fromkeys((*a, *b)):
            here, kind = key
            seconds, there = b.get(key, (0.0, None))
            moved = there if there != here else None
            groups.append(
                GroupSeconds(line=here, kind=kind, a=a.get(key, 0.0), b=seconds, line_b=moved)
            )
        # Equal differences may differ in their last bits; they keep the order of the schedule.
        return tuple(sorted(groups, key=lambda group: -round(abs(group.difference), 12)))

    def _kind_rows(self) -> tuple[tuple[str, ...], ...]:
        rows = [self._row(group.kind, group.a, group.b) for group in self.kinds]
        total = self._row("total", self.a.total_seconds, self.b.total_seconds)
        return (*rows, total)

    def _group_rows(self) -> tuple[tuple[str, ...], ...]:
        shown, others = self.groups[:_SHOWN], self.groups[_SHOWN:]
        rows = [self._row(_named(group), group.a, group.b) for group in shown]
        if others:
            sums = sum(group.a for group in others), sum(group.b for group in others)
            rows.append(self._row(f"{len(others)} other groups", *sums))
        return (*rows, self._row("total", self.a.total_seconds, self.b.total_seconds))

    def _row(self, name: str, a: float, b: float) -> tuple[str, ...]:
        us, total = 1e6, self.a.total_seconds or 1.0
        return (
            name,
            f"{a * us:.2f}",
            f"{b * us:.2f}",
            f"{(b - a) * us:+.2f}",
            f"{(b - a) / total:+.1%}",
        )


def compare(a: Timeline, b: Timeline) -> Comparison:
    """Compares two timelines, such as a program before and after a change.

    Args:
      a: what `predict` returned for the first program.
      b: for the second. Its lines are matched with those of the first by file and line number, and where
        a line has none, by its text.

    Returns:
      The comparison. `print` shows tables by kind of op and by source line, and a conclusion.

    Raises:
      ValueError: one of the two is no timeline.
    """
    for name, timeline in (("a", a), ("b", b)):
        if not isinstance(timeline, Timeline):
            raise ValueError(
                f"{name} is {type(timeline).__name__}, and compare takes timelines: give what "
                "collective_einsum.ruler.predict(...) returned"
            )
    return Comparison(a=a, b=b)


def _seconds(
    events: Iterable[Event], line: Callable[[Event], SourceLine | None]
) -> dict[tuple[SourceLine | None, str], float]:
    """Seconds by line and kind."""
    seconds: dict[tuple[SourceLine | None, str], float] = {}
    for event in events:
        if event.row in (COMPUTE_ROW, STALL_ROW):
            group = (line(event), _kind(event))
            seconds[group] = seconds.get(group, 0.0) + event.seconds
    return seconds


def _line(event: Event) -> SourceLine | None:
    return event.lines[0] if event.lines else None


def _matches(
    a: Iterable[SourceLine | None], b: Iterable[SourceLine | None]
) -> dict[SourceLine | None, SourceLine | None]:
    """Lines of `b` that `a` does not have, each with a line of the same text that only `a` has."""
    lines_a, lines_b = ({line for line in lines if line is not None} for lines in (a, b))
    by_text: dict[str, list[SourceLine]] = {}
    for line in _sorted(lines_a - lines_b):
        by_text.setdefault(line_text(line), []).append(line)
    matches: dict[SourceLine | None, SourceLine | None] = {}
    for line in _sorted(lines_b - lines_a):
        text = line_text(line)
        if text and by_text.get(text):
            matches[line] = by_text[text].pop(0)
    return matches


def _sorted(lines: Iterable[SourceLine]) -> list[SourceLine]:
    return sorted(lines, key=lambda line: (line.file, line.line))


def _kind(event: Event) -> str:
    if event.row == COMPUTE_ROW:
        return "dots" if event.kind == "dot" else "other compute"
    return (
        "waits for HBM copies"
        if event.kind == "copy"
        else f"waits for {event.op or 'a collective'}"
    )


def _named(group: GroupSeconds) -> str:
    if group.line is None:
        return f"(of no line) {group.kind}"
    function = group.line.function.rpartition("<locals>.")[2]
    place = short_path(group.line)
    if group.line_b is not None:
        # A file's name is not repeated.
        same = group.line_b.file == group.line.file
        place += f"|{group.line_b.line if same else short_path(group.line_b)}"
    name = " ".join(word for word in (place, function) if word)
    width = _NAME_WIDTH - len(group.kind) - 1
    name = name if len(name) <= width else f"...{name[3 - width :]}"
    return f"{name} {group.kind}"
