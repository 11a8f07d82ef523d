"""The changes that are worth trying in a program: einsums in place of collectives, by source line."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import jax

from ..chips.chip import Chip
from ..chips.compile_context import for_chip
from ..ops.collective_op import Collective
from ..ops.einsum_op import Operation
from ..ruler.hlo.stack_frames import SourceLine
from ..sharded_op import Sharded
from .global_dots import einsums_of, global_dots
from .jaxprs import ClosedJaxpr, Jaxpr, JaxprEqn, every_jaxpr, type_of
from .local_pairs import einsums
from .program import TracedProgram, lines_of
from .substitute import Replacement

# The file and the number of a line.
Place = tuple[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """The einsums in place of the collectives of one source line.

    Attributes:
      line: of the collectives.
      replacements: one for every collective, or several where its dots differ.
    """

    line: SourceLine
    replacements: tuple[Replacement, ...]

    @property
    def calls(self) -> tuple[str, ...]:
        """The calls, each once."""
        return tuple(dict.fromkeys(replacement.text for replacement in self.replacements))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a program has.

    Attributes:
      by_place: the candidates, by the place of their line and those of their dots.
      reasons: by the place of a collective, why no einsum can stand there.
    """

    by_place: Mapping[Place, Candidate]
    reasons: Mapping[Place, str]

    def of(self, places: Sequence[Place]) -> Candidate | None:
        """The candidate of the first of these places that has one."""
        return next((self.by_place[p] for p in places if p in self.by_place), None)

    def reason(self, places: Sequence[Place]) -> str:
        """Why none of these places has a candidate."""
        return next((self.reasons[p] for p in places if p in self.reasons), "")


def candidates(program: TracedProgram, places: Collection[Place], chip: Chip) -> Candidates:
    """The candidates of a program: those within its `shard_map`s, and of the dots of global arrays those
    that lie at one of `places`."""
    lines: dict[Place, SourceLine] = {}
    made: dict[Place, list[Replacement]] = {}
    dots: dict[Place, Place] = {}
    reasons: dict[Place, str] = {}
    for eqn, result in (*_local(program.jaxpr), *_global(program, places, chip)):
        stack = lines_of(eqn)
        if not stack:
            continue
        at = place(stack[0])
        if isinstance(result, str):
            reasons.setdefault(at, result)
            continue
        lines[at] = stack[0]
        made.setdefault(at, []).extend(result)
        for replacement in result:
            for dot in (*replacement.replaced, *replacement.superseded):
                dots.update((place(line), at) for line in lines_of(dot)[:1])
    by_place = {
        at: Candidate(line=lines[at], replacements=tuple(replacements))
        for at, replacements in made.items()
    }
    near = {dot: by_place[at] for dot, at in dots.items()}
    return Candidates(by_place={**near, **by_place}, reasons=reasons)


def place(line: SourceLine) -> Place:
    """Where a line is."""
    return line.file, line.line


def schedules(changed: ClosedJaxpr, original: ClosedJaxpr, chip: Chip) -> tuple[str, ...]:
    """The schedules of this library's calls that a changed program has in addition, each once."""
    before = {id(eqn) for jaxpr in every_jaxpr(original.jaxpr) for eqn in jaxpr.eqns}
    with for_chip(None, likely=chip):
        return tuple(dict.fromkeys(_schedules(changed.jaxpr, before)))


def _schedules(program: Jaxpr, known: Collection[int]) -> Iterator[str]:
    for jaxpr in every_jaxpr(program):
        for eqn in jaxpr.eqns:
            op = eqn.params.get("op")
            if id(eqn) in known:
                continue
            if isinstance(op, Sharded):
                # It decides when it is lowered.
                types = [type_of(var) for var in eqn.invars]
                inner = jax.make_jaxpr(lambda *operands, op=op: op.run(operands))(*types)
                yield from _schedules(inner.jaxpr, known)
            elif isinstance(op, Operation | Collective):
                yield str(op.schedule)


def _local(program: ClosedJaxpr) -> Iterator[tuple[JaxprEqn, list[Replacement] | str]]:
    for jaxpr in every_jaxpr(program.jaxpr):
        yield from einsums(jaxpr)


def _global(
    program: TracedProgram, places: Collection[Place], chip: Chip
) -> Iterator[tuple[JaxprEqn, list[Replacement] | str]]:
    dots = [
        dot
        for dot in global_dots(program.jaxpr.jaxpr)
        if any(place(line) in places for line in lines_of(dot)[:1])
    ]
    if not dots:
        return
    made = einsums_of(program, dots, chip)
    for dot in dots:
        result = made[id(dot)]
        yield dot, result if isinstance(result, str) else [result]
