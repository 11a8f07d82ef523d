"""Runs an einsum with its collectives under its schedule, on local shards."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax

from ..ops.einsum_op import Operation
from . import chunked_schedule, ring_schedule
from .local_ops import lax_gather, products, psum_scatter, sum_as_sent


def run_einsum(op: Operation, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The results on local shards, in the dtype of `op`: one for every rhs, or one sum; see `Operation`.

    Args:
      op: the einsum, its collectives and its schedule.
      operands: of "shared_lhs", one lhs and then every rhs, and then their scales if it is `scaled`; of
        "sum", as many lhs as rhs, which follow.
    """
    lhs, rhs, scales = op.split(operands)
    with jax.named_scope(_scope(op)):
        return [result.astype(op.dtype) for result in _results(op, lhs, rhs, scales)]


def _scope(op: Operation) -> str:
    words = ["einsum"]
    if op.gather:
        words.insert(0, "all_gather")
    if op.scatter:
        words.append("reduce_scatter")
    if op.reduce:
        words.append("all_reduce")
    return f"{'_'.join(words)}[{op.schedule}]"


def _results(
    op: Operation, lhs: list[jax.Array], rhs: list[jax.Array], scales: list[jax.Array]
) -> list[jax.Array]:
    if op.schedule.kind == "blocking":
        return _blocking(op, lhs, rhs)
    if op.schedule.kind == "chunked" or op.reduce:
        # A ring has no dot for each hop of an all-reduce, which is one chunk.
        return chunked_schedule.run(op, lhs, rhs, scales)
    return ring_schedule.run(op, lhs, rhs)


def _blocking(op: Operation, lhs: list[jax.Array], rhs: list[jax.Array]) -> list[jax.Array]:
    if op.gather is not None:
        lhs = [lax_gather(op, lhs[0], op.gather.axes, op.lhs.index(op.gather.label))]
    results = products(op, lhs, rhs)
    if op.scatter is not None:
        dim = op.out.index(op.scatter.label)
        results = [
            lax.psum_scatter(sum_as_sent(op, y), op.scatter.axes, scatter_dimension=dim, tiled=True)
            if 0 not in y.shape
            else psum_scatter(sum_as_sent(op, y), op.scatter.axes, dim)
            for y in results
        ]
    if op.reduce:
        results = [lax.psum(sum_as_sent(op, y), op.reduce) for y in results]
    return results
