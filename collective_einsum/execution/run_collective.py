"""Runs a collective of one array: lax's own, or ring steps that overlap with unrelated compute."""

from __future__ import annotations

from collections.abc import Sequence

import jax
from jax import lax

from ..ops.collective_op import Collective
from ..rings import multi_axis, point_to_point
from ..rings.all_reduce import all_reduce_steps
from ..rings.steps import Steps, finish
from ..spec.dtypes import accumulator_dtype
from .local_ops import psum_scatter


def run_collective(op: Collective, operands: Sequence[jax.Array]) -> list[jax.Array]:
    """The result of `op` on the one local shard in `operands`, as a list of one, in its dtype."""
    with jax.named_scope(f"{op.kind}[{op.schedule}]"):
        (x,) = operands
        sent = x.astype(op.schedule.wire_dtype or x.dtype)
        is_lax = op.schedule.kind == "blocking" or (
            op.schedule.direction == "async" and op.kind in ("all_gather", "all_to_all")
        )
        result = _lax(op, sent) if is_lax else finish(_steps(op, x, sent))
        return [result.astype(x.dtype)]


def _lax(op: Collective, x: jax.Array) -> jax.Array:
    if op.kind == "all_gather":
        return lax.all_gather(x, op.axes, axis=op.dim, tiled=True)
    if op.kind == "reduce_scatter":
        return psum_scatter(x, op.axes, op.dim)
    if op.kind == "all_to_all":
        return lax.all_to_all(x, op.axes, op.dim, op.concat, tiled=True)
    return lax.psum(x, op.axes)


def _steps(op: Collective, x: jax.Array, sent: jax.Array) -> Steps:
    direction, rolls = op.schedule.direction, op.schedule.rolls
    if op.kind == "all_gather":
        return multi_axis.all_gather(sent, op.axes, op.dim, direction, rolls=rolls)
    if op.kind == "all_to_all":
        return point_to_point.all_to_all(sent, op.axes, op.dim, op.concat)

    def wire(total: jax.Array) -> jax.Array:
        return total.astype(sent.dtype)

    accumulator = accumulator_dtype(x.dtype)
    if op.kind == "reduce_scatter":
        return multi_axis.reduce_scatter(
            x, op.axes, op.dim, direction, wire=wire, accumulator=accumulator, rolls=rolls
        )
    return all_reduce_steps(x, op.axes, direction, wire=wire, accumulator=accumulator, rolls=rolls)
