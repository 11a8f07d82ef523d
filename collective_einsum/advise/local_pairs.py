"""Collectives of lax next to a dot in a jaxpr, and the einsum of this library that does what both do.

The collectives that a user calls within `shard_map`: an all-gather whose result dots read, a
`psum_scatter` or a `psum` of a dot's result.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..dot_general import formula
from ..local_einsums import all_gather_einsum, einsum_all_reduce, einsum_reduce_scatter
from . import steps as between
from .jaxprs import DOT, Jaxpr, JaxprEqn, Literal, type_of
from .source_text import source_text
from .steps import Step
from .substitute import Replacement

_GATHER, _SCATTER, _REDUCE = "all_gather", "reduce_scatter", ("psum", "psum_invariant")


class NoEinsumError(Exception):
    """Why a collective is no einsum with a dot, in words."""


def einsums(jaxpr: Jaxpr) -> Iterator[tuple[JaxprEqn, list[Replacement] | str]]:
    """The collectives of one jaxpr that might be next to a dot, those that it calls left out.

    Yields:
      The collective, with the einsums in its place, or why there are none.
    """
    graph = _Graph.of(jaxpr)
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name not in (_GATHER, _SCATTER, *_REDUCE):
            continue
        try:
            axes = _axes(eqn)
            made = _gathers(graph, eqn, axes) if name == _GATHER else [_reduction(graph, eqn, axes)]
            yield eqn, made
        except NoEinsumError as reason:
            yield eqn, str(reason)


@dataclasses.dataclass(frozen=True)
class _Graph:
    """What makes and what reads the variables of a jaxpr, by their identities."""

    made_by: dict[int, JaxprEqn]
    read_by: dict[int, list[JaxprEqn]]
    results: set[int]

    @staticmethod
    def of(jaxpr: Jaxpr) -> _Graph:
        graph = _Graph({}, {}, {id(var) for var in jaxpr.outvars})
        for eqn in jaxpr.eqns:
            graph.made_by.update((id(var), eqn) for var in eqn.outvars)
            for var in eqn.invars:
                if not isinstance(var, Literal):
                    graph.read_by.setdefault(id(var), []).append(eqn)
        return graph


def _axes(eqn: JaxprEqn) -> tuple[str, ...]:
    """The mesh axes of a collective."""
    named = eqn.params["axes"] if "axes" in eqn.params else eqn.params["axis_name"]
    axes = named if isinstance(named, tuple) else (named,)
    if not all(isinstance(axis, str) for axis in axes):
        raise NoEinsumError("it is over a dimension that vmap maps")
    if eqn.params.get("axis_index_groups") is not None:
        raise NoEinsumError("it has axis_index_groups")
    if len(eqn.invars) != 1 or isinstance(eqn.invars[0], Literal):
        raise NoEinsumError("it is of several arrays at once")
    return axes


@dataclasses.dataclass(frozen=True)
class _Read:
    """A dot that reads a gathered array: on which side, after which steps, and gathered where."""

    dot: JaxprEqn
    left: bool
    path: tuple[JaxprEqn, ...]
    steps: tuple[Step, ...]
    dim: int

    @property
    def spec(self) -> str:
        """The einsum, the gathered operand first."""
        lhs, rhs, out = _terms(self.dot)
        return f"{lhs},{rhs}->{out}" if self.left else f"{rhs},{lhs}->{out}"

    @property
    def other(self) -> Any:
        return self.dot.invars[1 if self.left else 0]

    @property
    def together(self) -> tuple[Any, ...]:
        """What dots share that one call can make."""
        return (
            self.spec,
            self.dim,
            tuple(map(id, self.path)),
            _dtype(self.dot),
            str(self.dot.params["precision"]),
        )


def _gathers(graph: _Graph, eqn: JaxprEqn, axes: tuple[str, ...]) -> list[Replacement]:
    """The calls for the dots that read what an all-gather makes, one for those that can share it."""
    dim, count = eqn.params["all_gather_dimension"], eqn.params["axis_size"]
    shard = list(type_of(eqn.invars[0]).shape)
    first: tuple[Step, ...] = ()
    if not eqn.params["tiled"]:
        first = (between.reshaped([*shard[:dim], 1, *shard[dim:]]),)
    reads, reasons = [], []
    for read in _reads(graph, eqn.outvars[0], (), first, dim, count):
        (reads if isinstance(read, _Read) else reasons).append(read)
    if not reads:
        raise NoEinsumError(next(iter(reasons), "no dot reads it"))
    alike: dict[Any, list[_Read]] = {}
    for read in reads:
        alike.setdefault(read.together, []).append(read)
    return [_gather(eqn, axes, group) for group in alike.values()]


def _reads(
    graph: _Graph,
    var: Any,
    path: tuple[JaxprEqn, ...],
    steps: tuple[Step, ...],
    dim: int,
    count: int,
) -> Iterator[_Read | str]:
    """The dots that read a variable, through steps; in words what else does."""
    for user in graph.read_by.get(id(var), []):
        if user.primitive.name == DOT:
            sides = [operand is var for operand in user.invars]
            if all(sides):
                yield "a dot reads it on both sides"
            else:
                yield _Read(user, sides[0], path, steps, dim)
        elif between.is_step(user):
            step = between.after_gather(user, dim, count)
            if step is None:
                yield "a reshape takes its shards apart before the dot"
            else:
                made = (*steps, step[0])
                yield from _reads(graph, user.outvars[0], (*path, user), made, step[1], count)
        else:
            yield f"{user.primitive.name} reads it before a dot does"


def _gather(eqn: JaxprEqn, axes: tuple[str, ...], reads: Sequence[_Read]) -> Replacement:
    first = reads[0]
    several = len(reads) > 1
    lhs, rhs, out = _terms(first.dot)
    label = (lhs if first.left else rhs)[first.dim]
    natural = first.left or several
    spec = first.spec if natural else f"{lhs},{rhs}->{out}"
    options: dict[str, Any] = {"axis_name": axes, "gather": label, **_options(first.dot)}
    before, after = (
        type_of(eqn.invars[0]).dtype,
        type_of(first.dot.invars[0 if first.left else 1]).dtype,
    )
    if before.itemsize < after.itemsize and _is_float(before) and _is_float(after):
        options["wire_dtype"] = before
    shown = "x" + "".join(step.text for step in first.steps)
    others = ", ".join(f"w{i}" for i in range(len(reads))) if several else "w"
    operands = f"{shown}, [{others}]" if several else f"{shown}, w" if natural else f"w, {shown}"

    def call(x: Any, *others: Any) -> list[Any]:
        for step in first.steps:
            x = step.apply(x)
        other: Any = list(others) if several else others[0]
        pair = (x, other) if natural else (other, x)
        made = all_gather_einsum(spec, *pair, preferred_element_type=_dtype(first.dot), **options)
        return made if several else [made]

    call.__name__ = all_gather_einsum.__name__
    return Replacement(
        replaced=tuple(read.dot for read in reads),
        superseded=(eqn, *first.path),
        operands=(eqn.invars[0], *(read.other for read in reads)),
        call=call,
        text=_text(all_gather_einsum, spec, operands, first.dot, options),
    )


def _reduction(graph: _Graph, eqn: JaxprEqn, axes: tuple[str, ...]) -> Replacement:
    """The call for the dot whose result a collective sums."""
    scatters = eqn.primitive.name == _SCATTER
    dot, path = _summed(graph, eqn)
    options: dict[str, Any] = {"axis_name": axes, **_options(dot)}
    steps = [between.unchanged(step) for step in reversed(path)]
    lhs, rhs, out = _terms(dot)
    function: Callable[..., Any] = einsum_all_reduce
    if scatters:
        function, steps = einsum_reduce_scatter, []
        dim, count = eqn.params["scatter_dimension"], eqn.params["axis_size"]
        if not eqn.params["tiled"]:
            steps = [between.reshaped(type_of(eqn.outvars[0]).shape)]
        for step in path:
            moved = between.before_scatter(step, dim, count)
            if moved is None:
                raise NoEinsumError("a reshape takes its blocks apart after the dot")
            steps.insert(0, moved[0])
            dim = moved[1]
        options["scatter"] = out[dim]
    dtype = type_of(eqn.invars[0]).dtype
    if _is_float(dtype) != _is_float(_dtype(dot)):
        raise NoEinsumError(f"a conversion from {_dtype(dot)} to {dtype} stands between")
    spec = f"{lhs},{rhs}->{out}"

    def call(x: Any, w: Any) -> list[Any]:
        y = function(spec, x, w, preferred_element_type=dtype, **options)
        for step in steps:
            y = step.apply(y)
        return [y]

    call.__name__ = function.__name__
    text = _text(function, spec, "x, w", dot, options, dtype)
    return Replacement(
        replaced=(eqn,),
        superseded=(dot, *path),
        operands=tuple(dot.invars),
        call=call,
        text=text + "".join(step.text for step in steps if not step.text.startswith(".astype")),
    )


def _summed(graph: _Graph, eqn: JaxprEqn) -> tuple[JaxprEqn, list[JaxprEqn]]:
    """The dot whose result a collective sums, and what stands between, from the collective backwards."""
    var, path = eqn.invars[0], []
    while True:
        if len(graph.read_by.get(id(var), [])) > 1 or id(var) in graph.results:
            raise NoEinsumError("something else reads what it sums")
        made = graph.made_by.get(id(var))
        if made is None:
            raise NoEinsumError("what it sums is made elsewhere")
        if made.primitive.name == DOT:
            return made, path
        if not between.is_step(made):
            raise NoEinsumError(f"{made.primitive.name} stands between it and a dot")
        path.append(made)
        var = made.invars[0]


def _terms(dot: JaxprEqn) -> tuple[str, str, str]:
    """The labels of a dot's operands and of its result."""
    lhs, rhs = (type_of(var).shape for var in dot.invars)
    operands, out = formula(dot.params["dimension_numbers"], lhs, rhs).split("->")
    left, right = operands.split(",")
    return left, right, out


def _dtype(dot: JaxprEqn) -> np.dtype:
    return type_of(dot.outvars[0]).dtype


def _is_float(dtype: np.dtype) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.inexact))


def _options(dot: JaxprEqn) -> dict[str, Any]:
    """What was asked of a dot."""
    precision = dot.params["precision"]
    return {} if precision is None else {"precision": precision}


def _text(
    function: Callable[..., Any],
    spec: str,
    operands: str,
    dot: JaxprEqn,
    options: dict[str, Any],
    dtype: np.dtype | None = None,
) -> str:
    """A call, as a user writes it."""
    dtype = _dtype(dot) if dtype is None else dtype
    axes = options["axis_name"]
    shown = {**options, "axis_name": axes[0] if len(axes) == 1 else axes}
    if dtype != np.result_type(*(type_of(var).dtype for var in dot.invars)):
        shown["preferred_element_type"] = dtype
    words = [f"{name}={source_text(value)}" for name, value in shown.items()]
    return f'ce.{function.__name__}("{spec}", {operands}, {", ".join(words)})'
