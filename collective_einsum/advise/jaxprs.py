"""Walks of jaxprs: the program as jax traced it, as equations that call further jaxprs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.extend import core
from jax.extend.core import Jaxpr as Jaxpr
from jax.extend.core import JaxprEqn as JaxprEqn
from jax.extend.core import Literal as Literal

ClosedJaxpr = core.ClosedJaxpr  # pyright: ignore[reportPrivateImportUsage]
SHARD_MAP, DOT = "shard_map", "dot_general"


def inner_jaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs that an equation calls, but for those of kernels."""
    if "pallas" in eqn.primitive.name:
        return
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, Jaxpr):
                yield one


def every_jaxpr(program: Jaxpr, *, local: bool = True) -> Iterator[Jaxpr]:
    """A jaxpr and all that it calls, each once; without the `shard_map`s unless `local`."""
    seen: set[int] = set()
    waiting = [program]
    while waiting:
        jaxpr = waiting.pop()
        if id(jaxpr) in seen:
            continue
        seen.add(id(jaxpr))
        yield jaxpr
        for eqn in jaxpr.eqns:
            if local or eqn.primitive.name != SHARD_MAP:
                waiting += inner_jaxprs(eqn)


def type_of(variable: Any) -> Any:
    """The type of a variable: its shape, dtype and sharding."""
    return variable.aval
