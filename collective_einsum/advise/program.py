"""A program as jax traced it, to be changed and lowered again as it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.extend.core import jaxpr_as_fun

from ..ruler.hlo.stack_frames import SourceLine, callers_lines
from .jaxprs import ClosedJaxpr, JaxprEqn

_JAX = str(Path(jax.__file__).parent)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracedProgram:
    """A function, traced with its arguments.

    Attributes:
      name: of the function.
      jaxpr: what it does.
      args: the leaves of its arguments.
      donated: the places of those whose memory it may use.
      out_shardings: asked of its results; None where nothing is asked.
    """

    name: str
    jaxpr: ClosedJaxpr
    args: tuple[Any, ...]
    donated: tuple[int, ...]
    out_shardings: tuple[Any, ...]

    def lowered(self, jaxpr: ClosedJaxpr) -> jax.stages.Lowered:
        """Another jaxpr of the same arguments and results, lowered as the program."""
        run = jaxpr_as_fun(jaxpr)

        def program(*args: Any) -> Any:
            return tuple(run(*args))

        program.__name__ = self.name
        jitted = jax.jit(program, donate_argnums=self.donated, out_shardings=self.out_shardings)
        return jitted.lower(*self.args)


def trace(function: Callable[..., Any], args: tuple[Any, ...]) -> TracedProgram:
    """Traces a function, jitted or not; static arguments of a jitted one are known by its signature."""
    dynamic = _dynamic(function, args)

    def of_dynamic(*given: Any) -> Any:
        every = list(args)
        for place, value in zip(dynamic, given, strict=True):
            every[place] = value
        return function(*every)

    given = tuple(args[place] for place in dynamic)
    jaxpr = jax.make_jaxpr(of_dynamic)(*given)
    eqns = jaxpr.jaxpr.eqns
    # A jitted function is one equation, which says what was asked of jit.
    only = eqns[0] if len(eqns) == 1 and "donated_invars" in eqns[0].params else None
    return TracedProgram(
        name=getattr(function, "__name__", "program"),
        jaxpr=jaxpr,
        args=tuple(jax.tree.leaves(given)),
        donated=() if only is None else _donated(jaxpr, only),
        out_shardings=tuple(_asked(only, var) for var in jaxpr.jaxpr.outvars),
    )


def _dynamic(function: Callable[..., Any], args: tuple[Any, ...]) -> list[int]:
    """The places of the arguments that are traced."""
    if not hasattr(function, "trace"):
        return list(range(len(args)))
    traced = list(function.trace(*args).args_info[0])
    places = []
    for place, arg in enumerate(args):
        if len(places) < len(traced) and _is_traced_as(arg, traced[len(places)]):
            places.append(place)
    return places


def _is_traced_as(arg: Any, info: Any) -> bool:
    leaves, infos = jax.tree.leaves(arg), jax.tree.leaves(info)
    shapes = [getattr(leaf, "shape", ()) for leaf in leaves]
    return len(leaves) == len(infos) and all(
        shape == one.shape for shape, one in zip(shapes, infos, strict=True)
    )


def _donated(jaxpr: ClosedJaxpr, jitted: JaxprEqn) -> tuple[int, ...]:
    flags = zip(jitted.invars, jitted.params["donated_invars"], strict=True)
    given = {id(var) for var, donated in flags if donated}
    return tuple(i for i, var in enumerate(jaxpr.jaxpr.invars) if id(var) in given)


def _asked(jitted: JaxprEqn | None, result: Any) -> Any:
    """The sharding that jit was asked to give a result; None where it was not asked."""
    if jitted is None:
        return None
    results = zip(jitted.outvars, jitted.params["out_shardings"], strict=True)
    asked = next((sharding for var, sharding in results if var is result), None)
    return asked if isinstance(asked, jax.sharding.Sharding) else None


def lines_of(eqn: JaxprEqn) -> tuple[SourceLine, ...]:
    """The caller's lines that an equation was traced from, the innermost first."""
    traceback = eqn.source_info.traceback
    frames = () if traceback is None else traceback.frames
    stack = [
        SourceLine(file=frame.file_name, line=frame.line_num, function=frame.function_name)
        for frame in frames
        if not frame.file_name.startswith(_JAX)
    ]
    return callers_lines(stack)
