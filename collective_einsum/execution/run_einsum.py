"""An operation carried out under its schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jax import lax

from . import chunked_schedule as pipelined
from . import ring_schedule as looped
from .local_ops import products, psum_scatter

if TYPE_CHECKING:
    from ..ops.einsum_op import Operation


def execute(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """The results of `op` on local shards, before the last conversion."""
    if op.schedule.kind == "blocking":
        return _blocking(op, lhs, rhs)
    if op.schedule.kind == "chunked" or op.reduce:
        # A ring has no dot for each hop of an all-reduce, which is one chunk.
        return pipelined.run(op, lhs, rhs)
    return looped.run(op, lhs, rhs)


def _blocking(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    if op.gather is not None:
        dim, dtype = op.lhs.index(op.gather.label), lhs[0].dtype
        lhs = [
            lax.all_gather(op.moving(lhs[0]), op.gather.axes, axis=dim, tiled=True).astype(dtype)
        ]
    results = products(op, lhs, rhs)
    if op.scatter is not None:
        dim = op.out.index(op.scatter.label)
        results = [
            lax.psum_scatter(op.wire(y), op.scatter.axes, scatter_dimension=dim, tiled=True)
            if 0 not in y.shape
            else psum_scatter(op.wire(y), op.scatter.axes, dim)
            for y in results
        ]
    if op.reduce:
        results = [lax.psum(op.wire(y), op.reduce) for y in results]
    return results
