"""What `advise` found out, as a value that prints as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ..ruler.hlo.stack_frames import SourceLine
from ..ruler.replay.source_lines import short_path
from ..ruler.replay.tables import WIDTH, legend, table, wrapped
from ..ruler.replay.timeline import Timeline
from ..text.showing import Shown

# A smaller gain, as a fraction of the program, is within the error of the replay.
WORTHWHILE = 0.01
_OPTION_COLUMNS = {
    "options": "compiler options, added to the program's own",
    "us": "the program, predicted",
    "exposed": "us in which the chip waits for other chips",
    "gain": "of the program's time as it is",
}
_EINSUM_COLUMNS = {
    "collective": "next to a dot",
    "runs": "how often",
    "exposed": "us in which the chip waits for it, in all",
    "saves": "us that the program takes less with the einsum below in its place, compiled and replayed; "
    "negative where it takes more; - where it was not tried",
    "gain": "the same, of the program's time as it is",
    "line": "where it was traced",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptionAdvice:
    """A program under further compiler options.

    Attributes:
      name: of the set of options.
      options: the options that are added.
      timeline: the program under them, predicted.
    """

    name: str
    options: Mapping[str, Any]
    timeline: Timeline


@dataclasses.dataclass(frozen=True, kw_only=True)
class EinsumAdvice:
    """The collectives of one source line that are next to a dot, and the einsums in their place.

    Attributes:
      collective: "all-gather", "reduce-scatter", "all-reduce" or "collective-permute", as compiled.
      line: where it was traced, outside this library; None where the module does not say.
      count: how often it runs.
      exposed: seconds that the chip waits for it, in all.
      calls: the calls of this library, x being the operand that is sharded, or the first; () if none.
      schedules: what "auto" takes there.
      saving: seconds that the program takes less with these calls, replayed; negative where it takes
        more, None where it was not tried.
      timeline: the program with these calls; None where it was not tried.
      reason: why it was not tried.
    """

    collective: str
    line: SourceLine | None
    count: int
    exposed: float
    calls: tuple[str, ...]
    schedules: tuple[str, ...] = ()
    saving: float | None = None
    timeline: Timeline | None = None
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice(Shown):
    """What would make a program faster, all of it predicted; prints as tables.

    Attributes:
      timeline: the program as it is.
      options: the program under every set of further options.
      einsums: the collectives next to dots that the chip waits for, the longest first.
      advised: those of them that are worth a change, together.
      changed: the program with these; None if there are none.
      both: the program with these, under `best_options`; None if there are no such.
    """

    timeline: Timeline
    options: tuple[OptionAdvice, ...]
    einsums: tuple[EinsumAdvice, ...]
    advised: tuple[EinsumAdvice, ...] = ()
    changed: Timeline | None = None
    both: Timeline | None = None

    def gain(self, option: OptionAdvice) -> float:
        """The fraction of the program's time that options save; negative where they cost time."""
        return 1 - option.timeline.total_seconds / self.timeline.total_seconds

    @property
    def best_options(self) -> OptionAdvice | None:
        """The options that save most, the fewest of those that save as much; None if none do."""
        worth = [option for option in self.options if self.gain(option) >= WORTHWHILE]
        return max(worth, key=lambda o: (round(self.gain(o), 3), -len(o.options)), default=None)

    @property
    def saving(self) -> float:
        """Seconds that the program takes less with all that is advised but for options; 0 if nothing."""
        if self.changed is None:
            return 0.0
        return self.timeline.total_seconds - self.changed.total_seconds

    @property
    def conclusion(self) -> str:
        """What helps, in a sentence."""
        best = self.best_options
        ways = []
        if best is not None:
            ways.append(f"the options {best.name!r} would save {self.gain(best):.1%}")
        if self.advised:
            calls = sum(len(einsum.calls) for einsum in self.advised)
            number = "one call" if calls == 1 else f"{calls} calls"
            share = self.saving / self.timeline.total_seconds
            ways.append(
                f"{number} of collective_einsum would save {self.saving * 1e6:.1f} us ({share:.1%})"
            )
        if not ways:
            return (
                "So nothing that was tried would help here: neither the options nor an einsum of "
                "collective_einsum."
            )
        if self.both is not None:
            saved = 1 - self.both.total_seconds / self.timeline.total_seconds
            less = best is not None and saved < self.gain(best)
            ways.append(
                f"both together {saved:.1%}{', less than the options alone' if less else ''}"
            )
        *first, last = ways
        return f"So {', '.join(first)}{', and ' if first else ''}{last}, predicted."

    def __repr__(self) -> str:
        return f"Advice({self.timeline.name}: {self.conclusion})"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        timeline = self.timeline
        yield f"{timeline.name} on {timeline.chip}, compiled and replayed (predicted)\n"
        rows = [("as it is", timeline, "")]
        rows += [(o.name, o.timeline, f"{self.gain(o):+.1%}") for o in self.options]
        cells = [
            (name, f"{t.total_seconds * 1e6:.1f}", f"{t.exposed_seconds * 1e6:.1f}", gain)
            for name, t, gain in rows
        ]
        yield f"{table(tuple(_OPTION_COLUMNS), cells)}\n"
        yield legend(_OPTION_COLUMNS)
        if (best := self.best_options) is not None:
            yield f"\n{best.name}:"
            yield from (f"  {name}={value}" for name, value in best.options.items())
        yield ""
        if self.einsums:
            yield from self._einsum_lines()
        else:
            yield "No collective next to a dot is exposed for 1% of the time or more."
        yield ""
        yield from wrapped(self.conclusion)

    def _einsum_lines(self) -> Iterator[str]:
        total = self.timeline.total_seconds
        yield f"{table(tuple(_EINSUM_COLUMNS), [_cells(e, total) for e in self.einsums])}\n"
        yield legend(_EINSUM_COLUMNS)
        for einsum in self.einsums:
            if einsum.reason:
                yield ""
                yield from wrapped(f"{_where(einsum)}: {einsum.reason}"[: 3 * WIDTH])
        for einsum in self.advised:
            yield f"\n{_where(einsum)}, instead:"
            for call in einsum.calls:
                yield from wrapped(f"  {call}")
            yield f"  # auto takes {', '.join(einsum.schedules)}"


def _where(einsum: EinsumAdvice) -> str:
    line = "of no line" if einsum.line is None else short_path(einsum.line)
    return f"{line}, {einsum.collective}"


def _cells(einsum: EinsumAdvice, total: float) -> tuple[str, ...]:
    saving = einsum.saving
    return (
        einsum.collective,
        str(einsum.count),
        f"{einsum.exposed * 1e6:.1f}",
        "-" if saving is None else f"{saving * 1e6:.1f}",
        "" if saving is None else f"{saving / total:+.1%}",
        "" if einsum.line is None else short_path(einsum.line),
    )
