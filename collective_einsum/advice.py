"""What `advise` found out, as a value that prints as tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from .ruler.hlo.stack_frames import SourceLine
from .ruler.replay.source_lines import short_path
from .ruler.replay.tables import legend, table, wrapped
from .ruler.replay.timeline import Timeline
from .text.showing import Shown

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
    "times": "how often it runs",
    "exposed": "us in which the chip waits for it, in all",
    "saves": "us that the call below is predicted to save, in all; - where nothing is saved",
    "share": "of the program's time",
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
    """A collective next to a dot, and the einsum that does what both do.

    Attributes:
      collective: "all-gather", "reduce-scatter" or "all-reduce".
      name: of the instruction that starts it.
      line: where it was traced, outside this library; None where the module does not say.
      count: how often it runs.
      exposed: seconds that the chip waits for it, in all.
      call: the call of this library, with x the operand that is gathered and w the other; "" if none.
      schedule: what "auto" takes there.
      saving: seconds that the call is predicted to save, in all; 0 where nothing is gained.
    """

    collective: str
    name: str
    line: SourceLine | None
    count: int
    exposed: float
    call: str
    schedule: str
    saving: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice(Shown):
    """What would make a program faster, all of it predicted; prints as tables.

    Attributes:
      timeline: the program as it is.
      options: the program under every set of further options.
      einsums: the collectives next to dots that the chip waits for, the longest first.
    """

    timeline: Timeline
    options: tuple[OptionAdvice, ...]
    einsums: tuple[EinsumAdvice, ...]

    def gain(self, option: OptionAdvice) -> float:
        """The fraction of the program's time that options save; negative where they cost time."""
        return 1 - option.timeline.total_seconds / self.timeline.total_seconds

    @property
    def best_options(self) -> OptionAdvice | None:
        """The options that save most, the fewest of those that save as much; None if none do."""
        worth = [option for option in self.options if self.gain(option) >= WORTHWHILE]
        return max(worth, key=lambda o: (round(self.gain(o), 3), -len(o.options)), default=None)

    @property
    def worthwhile(self) -> tuple[EinsumAdvice, ...]:
        """The einsums that save enough to be worth a change."""
        least = WORTHWHILE * self.timeline.total_seconds
        return tuple(einsum for einsum in self.einsums if einsum.saving >= least)

    @property
    def conclusion(self) -> str:
        """What helps, in a sentence."""
        best, einsums = self.best_options, self.worthwhile
        if best is None and not einsums:
            return "So neither the options nor an einsum of collective_einsum would help here."
        ways = []
        if best is not None:
            ways.append(f"the options {best.name!r} would save {self.gain(best):.1%}")
        if einsums:
            saved = sum(einsum.saving for einsum in einsums)
            number = "one call" if len(einsums) == 1 else f"{len(einsums)} calls"
            share = saved / self.timeline.total_seconds
            ways.append(f"{number} of collective_einsum {saved * 1e6:.1f} us ({share:.1%})")
        joined = ", and ".join(ways)
        return f"So {joined}, predicted." if best else f"So {joined} would be saved, predicted."

    def __repr__(self) -> str:
        return f"Advice({self.timeline.name}: {self.conclusion})"

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        timeline = self.timeline
        yield f"{timeline.name} on {timeline.chip}, compiled and replayed (predicted)"
        rows = [("as it is", timeline, "")]
        rows += [(o.name, o.timeline, f"{self.gain(o):+.1%}") for o in self.options]
        cells = [
            (name, f"{t.total_seconds * 1e6:.1f}", f"{t.exposed_seconds * 1e6:.1f}", gain)
            for name, t, gain in rows
        ]
        yield table(tuple(_OPTION_COLUMNS), cells)
        yield legend(_OPTION_COLUMNS)
        if (best := self.best_options) is not None:
            yield f"\n{best.name}:"
            yield from (f"  {name}={value}" for name, value in best.options.items())
        yield ""
        if self.einsums:
            total = timeline.total_seconds
            yield table(tuple(_EINSUM_COLUMNS), [_cells(einsum, total) for einsum in self.einsums])
            yield legend(_EINSUM_COLUMNS)
            for einsum in self.worthwhile:
                line = "" if einsum.line is None else f"{short_path(einsum.line)}, "
                yield f"\n{line}{einsum.name}:"
                yield f"  {einsum.call}  # auto: {einsum.schedule}"
        else:
            yield "No collective next to a dot is exposed for 1% of the time or more."
        yield ""
        yield from wrapped(self.conclusion)


def _cells(einsum: EinsumAdvice, total: float) -> tuple[str, ...]:
    saves = f"{einsum.saving * 1e6:.1f}" if einsum.saving else "-"
    return (
        einsum.collective,
        str(einsum.count),
        f"{einsum.exposed * 1e6:.1f}",
        saves,
        f"{einsum.saving / total:.1%}" if einsum.saving else "",
        "" if einsum.line is None else short_path(einsum.line),
    )
