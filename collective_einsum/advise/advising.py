"""`advise`: the compiler options and the einsums of this library that would make a program faster."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from ..chips.chip import Chip
from ..chips.known_compilers import NO_WINDOWED_EINSUM
from ..chips.names import as_chip
from ..ruler.hlo import parse as hlo
from ..ruler.hlo.neighbours import dots_next_to_collectives
from ..ruler.hlo.stack_frames import SourceLine
from ..ruler.prediction import lower, mesh_of_compiled
from ..ruler.replay.collective_overlaps import CollectiveOverlap
from ..ruler.replay.simulation import replay
from ..ruler.replay.timeline import Timeline
from .advice import WORTHWHILE, Advice, EinsumAdvice, OptionAdvice
from .candidates import Candidate, Candidates, candidates, place, schedules
from .jaxprs import ClosedJaxpr
from .program import TracedProgram, trace
from .substitute import substituted

_LOWERED = "what is lowered cannot be changed; give the function with its arguments"

# The compiler's own loops around a dot, which a blocking einsum would end.
_PERMUTES = "collective-permute"

Replay = Callable[[jax.stages.Lowered, Mapping[str, Any]], Timeline]


def advise(
    program: Callable[..., Any] | jax.stages.Lowered,
    *args: Any,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    chip: Chip | str | None = None,
    tries: int = 4,
) -> Advice:
    """What would make a program faster on a TPU slice: compiler options, and einsums of this library.

    The program is compiled under every set of options that is worth trying for the chip, and each is
    replayed. For the collectives next to dots that the chip waits longest for, the program is compiled
    and replayed with the einsum of this library that does what both do, one source line at a time, and
    then with all that gain. A saving is the difference of two such replays. Nothing is measured.

    Args:
      program: a function, jitted or not, that is lowered with `args`; or what lowering it gave, for
        options alone.
      args: as of `collective_einsum.ruler.predict`.
      target: the slice, such as "v5e:4x4"; inferred from the mesh, and only checked.
      options: the compiler's options that the program has; None for the compiler's defaults.
      chip: whose rates and schedules count, itself or its name; by default that of the slice.
      tries: the number of source lines that are tried.

    Returns:
      The advice; `print` shows it.

    Raises:
      ValueError: the arguments do not say on which slice, or the program is compiled already, or `tries`
        is negative.
    """
    if tries < 0:
        raise ValueError(f"tries={tries} is a number of source lines: give 0 or more")
    lowered = lower(program, args)
    given = dict(options or {})
    baseline = lowered.compile(compiler_options=given or None)
    mesh = mesh_of_compiled(args, baseline, target)
    figures = as_chip(chip or mesh.devices.flat[0].device_kind)

    def replayed(of: jax.stages.Lowered, more: Mapping[str, Any]) -> Timeline:
        compiled = of.compile(compiler_options={**given, **more} or None)
        return replay(compiled, mesh, figures)

    text = baseline.as_text() or ""
    timeline = replay(text, mesh, figures)
    tried = list(_options(lowered, replayed, timeline, given, figures))
    traced = None if isinstance(program, jax.stages.Lowered) else trace(program, args)
    waits = _waits(text, timeline, traced, figures)
    search = _Search(traced, replayed, timeline, figures)
    rows = tuple(search.row(wait, may_try=search.tries < tries) for wait in waits)
    advised, changed = search.together(rows)
    advice = Advice(
        timeline=timeline, options=tuple(tried), einsums=rows, advised=advised, changed=changed
    )
    best = advice.best_options
    if best is None or search.best is None:
        return advice
    return dataclasses.replace(advice, both=replayed(search.best, best.options))


def option_sets(chip: Chip) -> dict[str, dict[str, Any]]:
    """The sets of compiler options that are worth trying for a program on a chip, by name."""
    sets = {
        "no windowed einsum": dict(NO_WINDOWED_EINSUM),
        "those of ce.jit": dict(chip.compiler_options),
        "weights ahead": dict(chip.weights_ahead_options),
        "SparseCores": dict(chip.sparse_core_options),
        "queue of SparseCores": dict(chip.sparse_core_queue_options),
    }
    return {name: options for name, options in sets.items() if options}


def _options(
    lowered: jax.stages.Lowered,
    replayed: Replay,
    timeline: Timeline,
    given: Mapping[str, Any],
    chip: Chip,
) -> Iterator[OptionAdvice]:
    """The program under every set of options that it does not have, and under all that gain; of two
    sets of which one holds the other, under the faster."""
    gaining: list[OptionAdvice] = []
    for name, more in option_sets(chip).items():
        if all(given.get(option) == value for option, value in more.items()):
            continue
        tried = OptionAdvice(name=name, options=more, timeline=replayed(lowered, more))
        yield tried
        if tried.timeline.total_seconds < timeline.total_seconds:
            gaining.append(tried)
    kept = [one for one in gaining if not any(_stands_for(other, one) for other in gaining)]
    if len(kept) > 1:
        options = {option: value for one in kept for option, value in one.options.items()}
        together = replayed(lowered, options)
        yield OptionAdvice(name="those that gain", options=options, timeline=together)


def _stands_for(other: OptionAdvice, one: OptionAdvice) -> bool:
    """Whether one of two sets of options holds the other, and `other` is the faster, or the smaller of
    two that are equally fast."""
    small, large = sorted((set(other.options.items()), set(one.options.items())), key=len)
    seconds = (other.timeline.total_seconds, len(other.options))
    return small < large and seconds < (one.timeline.total_seconds, len(one.options))


@dataclasses.dataclass(frozen=True)
class _Wait:
    """The collectives of one kind and one source line, and how long the chip waits for them.

    `candidate` is what can be tried there, and `reason` says why there is nothing.
    """

    collective: str
    line: SourceLine | None
    count: int
    exposed: float
    candidate: Candidate | None
    reason: str


def _waits(text: str, timeline: Timeline, traced: TracedProgram | None, chip: Chip) -> list[_Wait]:
    """The collectives next to dots that the chip waits for, the longest first."""
    near = dots_next_to_collectives(hlo.parse(text))
    rows = [row for row in timeline.collectives() if row.exposed]
    lines = {row.name: _lines(row, near) for row in rows}
    places = {place(line) for several in lines.values() for line in several}
    known = Candidates(by_place={}, reasons={})
    if traced is not None:
        known = candidates(traced, places, chip)
    waits: dict[tuple[str, SourceLine | None], _Wait] = {}
    for row in rows:
        at = [place(line) for line in lines[row.name]]
        candidate = known.of(at)
        if candidate is None and row.name not in near:
            continue
        line = candidate.line if candidate is not None else next(iter(lines[row.name]), None)
        reason = "" if candidate is not None else known.reason(at)
        if traced is None:
            reason = _LOWERED
        key = (row.op, line)
        before = waits.get(key, _Wait(row.op, line, 0, 0.0, candidate, reason))
        waits[key] = dataclasses.replace(
            before, count=before.count + row.runs, exposed=before.exposed + row.exposed
        )
    least = WORTHWHILE * timeline.total_seconds
    return sorted((w for w in waits.values() if w.exposed >= least), key=lambda w: -w.exposed)


def _lines(
    row: CollectiveOverlap, near: Mapping[str, tuple[SourceLine, ...]]
) -> tuple[SourceLine, ...]:
    """The lines of a collective and of the dots next to it."""
    return (*([] if row.line is None else [row.line]), *near.get(row.name, ()))


class _Search:
    """Tries the candidates of a program, each alone and then those that gain.

    `best` is the program with what `together` advises, lowered.
    """

    def __init__(
        self, traced: TracedProgram | None, replayed: Replay, timeline: Timeline, chip: Chip
    ) -> None:
        self.traced, self.replayed, self.timeline, self.chip = traced, replayed, timeline, chip
        self.tries = 0
        self.seen: set[int] = set()
        self.by_row: dict[int, tuple[Candidate, jax.stages.Lowered, Timeline]] = {}
        self.best: jax.stages.Lowered | None = None

    def row(self, wait: _Wait, *, may_try: bool) -> EinsumAdvice:
        """What comes of the candidate for a wait, if it may be compiled."""
        row = EinsumAdvice(
            collective=wait.collective,
            line=wait.line,
            count=wait.count,
            exposed=wait.exposed,
            calls=() if wait.candidate is None else wait.candidate.calls,
            reason=wait.reason,
        )
        if wait.candidate is None or self.traced is None:
            return dataclasses.replace(row, reason=wait.reason or "no dot of the function is there")
        if id(wait.candidate) in self.seen:
            return dataclasses.replace(row, reason="the same call as in a row above does both")
        self.seen.add(id(wait.candidate))
        try:
            changed = self._changed([wait.candidate])
        except (ValueError, NotImplementedError, TypeError) as error:
            return dataclasses.replace(row, reason=f"the call is refused: {error}")
        taken = schedules(changed, self.traced.jaxpr, self.chip)
        row = dataclasses.replace(row, schedules=taken)
        if set(taken) == {"blocking"} and wait.collective != _PERMUTES:
            return dataclasses.replace(row, reason='"auto" overlaps nothing there: it is blocking')
        if not may_try:
            return dataclasses.replace(row, reason="not tried: others wait longer")
        self.tries += 1
        lowered = self.traced.lowered(changed)
        after = self.replayed(lowered, {})
        row = dataclasses.replace(
            row, saving=self.timeline.total_seconds - after.total_seconds, timeline=after
        )
        self.by_row[id(row)] = (wait.candidate, lowered, after)
        return row

    def together(
        self, rows: Sequence[EinsumAdvice]
    ) -> tuple[tuple[EinsumAdvice, ...], Timeline | None]:
        """The rows to be advised, and the program with all of them."""
        least = WORTHWHILE * self.timeline.total_seconds
        gaining = [row for row in rows if row.saving is not None and row.saving >= least]
        gaining.sort(key=lambda row: -(row.saving or 0.0))
        if not gaining:
            return (), None
        _, self.best, fastest = self.by_row[id(gaining[0])]
        if len(gaining) == 1:
            return (gaining[0],), fastest
        try:
            changed = self._changed([self.by_row[id(row)][0] for row in gaining])
        except (ValueError, NotImplementedError, TypeError):
            return (gaining[0],), fastest
        assert self.traced is not None
        lowered = self.traced.lowered(changed)
        after = self.replayed(lowered, {})
        if after.total_seconds >= fastest.total_seconds:
            return (gaining[0],), fastest
        self.best = lowered
        return tuple(gaining), after

    def _changed(self, chosen: Sequence[Candidate]) -> ClosedJaxpr:
        """The program with these candidates; a dot is taken by the first that has it.

        Raises:
          ValueError: a call does not take its operands.
        """
        assert self.traced is not None
        taken: set[int] = set()
        replacements = []
        for candidate in chosen:
            for replacement in candidate.replacements:
                eqns = {id(eqn) for eqn in (*replacement.replaced, *replacement.superseded)}
                if not eqns & taken:
                    taken |= eqns
                    replacements.append(replacement)
        return substituted(self.traced.jaxpr, replacements, self.chip)
