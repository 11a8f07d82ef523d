"""A program's jaxpr with some of its equations replaced by calls of this library.

A jaxpr is the program as jax traced it, before it lowers. All else in it stays as it is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh

from ..chips.chip import Chip
from ..chips.compile_context import for_chip
from .jaxprs import SHARD_MAP, ClosedJaxpr, Jaxpr, JaxprEqn, Literal, inner_jaxprs, type_of

# The shard_maps around an equation, the outermost first: their parameters.
Surroundings = tuple[Mapping[str, Any], ...]


def substituted(
    program: ClosedJaxpr, replacements: Sequence[Replacement], chip: Chip
) -> ClosedJaxpr:
    """The program with every replacement made, wherever it is nested.

    Args:
      program: as traced.
      replacements: of equations of the program, none of them replaced twice.
      chip: for which schedules are chosen.

    Raises:
      ValueError: a call does not take its operands, or makes results of other types, or one of its
        operands depends on its results.
    """
    rewriter = _Rewriter({id(eqn): r for r in replacements for eqn in r.replaced}, chip, {})
    return program.replace(jaxpr=rewriter.jaxpr(program.jaxpr, ()))


def traced_call(replacement: Replacement, around: Surroundings, chip: Chip) -> JaxprEqn:
    """The equation of a call, traced where it is to stand.

    Raises:
      ValueError: it does not take the operands, or its results have other types than they had.
    """
    traced: list[ClosedJaxpr] = []
    types = [type_of(operand) for operand in replacement.operands]

    def trace() -> tuple[()]:
        traced.append(jax.make_jaxpr(jax.jit(replacement.call))(*types))
        return ()

    with for_chip(None, likely=chip):
        _within(around, types[0].sharding.mesh, trace)
    (jaxpr,) = traced
    (eqn,) = jaxpr.jaxpr.eqns
    for made, wanted in zip(eqn.outvars, replacement.results, strict=True):
        if made.aval != wanted.aval:
            raise ValueError(f"its result is {made.aval}, and the program's is {wanted.aval}")
    operands: dict[Any, Any] = dict(zip(jaxpr.jaxpr.invars, replacement.operands, strict=True))
    last = replacement.replaced[-1]
    return eqn.replace(
        invars=[operands[var] for var in eqn.invars],
        outvars=list(replacement.results),
        source_info=last.source_info,
    )


def _within(around: Surroundings, mesh: AbstractMesh, trace: Callable[[], tuple[()]]) -> None:
    """Calls `trace` with the mesh axes of these shard_maps, or, where there are none, with `mesh`."""
    for parameters in reversed(around):
        trace = jax.shard_map(
            trace,
            mesh=parameters["mesh"],
            in_specs=(),
            out_specs=(),
            axis_names=set(parameters["newly_manual_axes"]),
            check_vma=parameters["check_vma"],
        )
    if around:
        jax.eval_shape(trace)
    elif mesh.empty:
        trace()
    else:
        # Axes that are Explicit in the program may be Auto here.
        with jax.sharding.use_abstract_mesh(mesh):
            trace()


def surroundings(eqn: JaxprEqn, around: Surroundings) -> Surroundings:
    """The shard_maps around what an equation calls."""
    return (*around, eqn.params) if eqn.primitive.name == SHARD_MAP else around


@dataclasses.dataclass
class _Rewriter:
    """Rewrites jaxprs; those that are called twice, once.

    Attributes:
      by_eqn: the replacements, by the identities of the equations that they replace.
      chip: for which schedules are chosen.
      done: what became of jaxprs, by their identities.
    """

    by_eqn: Mapping[int, Replacement]
    chip: Chip
    done: dict[int, Jaxpr]

    def jaxpr(self, jaxpr: Jaxpr, around: Surroundings) -> Jaxpr:
        if id(jaxpr) not in self.done:
            eqns = list(self._eqns(jaxpr, around))
            changed = any(a is not b for a, b in zip(eqns, jaxpr.eqns, strict=False))
            changed = changed or len(eqns) != len(jaxpr.eqns)
            if changed:
                left = {id(e) for r in self.by_eqn.values() for e in r.superseded}
                eqns = _without_unread(_in_order(eqns), jaxpr.outvars, left)
            self.done[id(jaxpr)] = jaxpr.replace(eqns=eqns) if changed else jaxpr
        return self.done[id(jaxpr)]

    def _eqns(self, jaxpr: Jaxpr, around: Surroundings) -> Iterator[JaxprEqn]:
        for eqn in jaxpr.eqns:
            replacement = self.by_eqn.get(id(eqn))
            if replacement is None:
                yield self._calling(eqn, surroundings(eqn, around))
            elif eqn is replacement.replaced[-1]:
                yield traced_call(replacement, around, self.chip)

    def _calling(self, eqn: JaxprEqn, around: Surroundings) -> JaxprEqn:
        """The equation, with the jaxprs that it calls rewritten."""
        if not any(True for _ in inner_jaxprs(eqn)):
            return eqn
        rewritten = {name: self._value(value, around) for name, value in eqn.params.items()}
        if all(value is eqn.params[name] for name, value in rewritten.items()):
            return eqn
        return eqn.replace(params=rewritten)

    def _value(self, value: Any, around: Surroundings) -> Any:
        if isinstance(value, ClosedJaxpr):
            inner = self.jaxpr(value.jaxpr, around)
            return value if inner is value.jaxpr else value.replace(jaxpr=inner)
        if isinstance(value, Jaxpr):
            return self.jaxpr(value, around)
        if isinstance(value, tuple) and any(isinstance(v, ClosedJaxpr | Jaxpr) for v in value):
            made = tuple(self._value(v, around) for v in value)
            return made if any(a is not b for a, b in zip(made, value, strict=True)) else value
        return value


def _in_order(eqns: Sequence[JaxprEqn]) -> list[JaxprEqn]:
    """The equations, each after those whose results it reads, else in the order they have."""
    missing = {id(var) for eqn in eqns for var in eqn.outvars}
    waiting: list[JaxprEqn] = []
    done: list[JaxprEqn] = []
    for eqn in eqns:
        waiting.append(eqn)
        while ready := [e for e in waiting if not any(id(v) in missing for v in e.invars)]:
            done += ready
            gone = {id(e) for e in ready}
            waiting = [e for e in waiting if id(e) not in gone]
            missing.difference_update(id(var) for e in ready for var in e.outvars)
    if waiting:
        raise ValueError("one of its operands is computed from one of its results")
    return done


def _without_unread(
    eqns: Sequence[JaxprEqn], results: Sequence[Any], superseded: set[int]
) -> list[JaxprEqn]:
    """The equations without those superseded ones whose results nothing reads."""
    read = {id(var) for var in results}
    kept: list[JaxprEqn] = []
    for eqn in reversed(eqns):
        if id(eqn) in superseded and not any(id(var) in read for var in eqn.outvars):
            continue
        read.update(id(var) for var in eqn.invars if not isinstance(var, Literal))
        kept.append(eqn)
    return kept[::-1]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Replacement:
    """A call of this library in place of equations.

    Attributes:
      replaced: the equations, all in one jaxpr; the call stands where the last of them is.
      superseded: equations that go where nothing else reads what they make.
      operands: variables that the call takes.
      call: the function of them; returns a list of results.
      text: the call, as a user writes it.
    """

    replaced: tuple[JaxprEqn, ...]
    superseded: tuple[JaxprEqn, ...]
    operands: tuple[Any, ...]
    call: Callable[..., list[Any]]
    text: str

    @functools.cached_property
    def results(self) -> tuple[Any, ...]:
        """The variables that the call assigns."""
        return tuple(var for eqn in self.replaced for var in eqn.outvars)
