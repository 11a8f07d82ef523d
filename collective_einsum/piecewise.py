"""The direct gather of a free label in pieces of every shard, each beside the dots of the one before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
from jax import lax

from . import blocks, ring
from .cost_dots import TILE

if TYPE_CHECKING:
    from .operation import End, Operation


def suits(op: Operation, label: str | None) -> bool:
    """Whether `label` is gathered and stands in the result alone, so that its pieces can come one by
    one: each makes columns of its own."""
    gathered = None if op.gather is None else op.gather.label
    return gathered is not None and label == gathered and gathered not in op.rhs


def run(op: Operation, end: End, x: Any, rhs: list[Any]) -> list[Any]:
    """The local results, each a dot for the own shard, then one for every device and piece."""
    dim, out_dim = op.lhs.index(end.label), op.out.index(end.label)
    shard, n, dtype = x.shape[dim], ring.total(end.axes), x.dtype
    cuts = blocks.pieces_of(shard, op.schedule.shares, TILE)
    here = lax.axis_index(end.axes)

    def put(results: list[Any], part: Any, device: Any, lo: int) -> list[Any]:
        """Results with the columns that `part` of a device's shard makes."""
        found = []
        for y, each in zip(results, rhs, strict=True):
            new = op.product(part.astype(dtype), each).astype(op.dtype)
            if y is None:
                full = (*new.shape[:out_dim], n * shard, *new.shape[out_dim + 1 :])
                y = lax.empty(full, op.dtype, out_sharding=jax.typeof(new).sharding)
            size = part.shape[dim]
            found.append(blocks.put(y, new, out_dim, (n,), 0, device, lo, size))
        return found

    def gather(moving: Any, cut: tuple[int, int]) -> Any:
        return lax.all_gather(blocks.cut(moving, dim, *cut), end.axes, axis=0, tiled=False)

    moving = op.moving(x)
    arrived = gather(moving, cuts[0])
    results = put([None] * len(rhs), x, here, 0)
    for i, (lo, _) in enumerate(cuts):
        pieces = arrived
        if i + 1 < len(cuts):
            # One piece is under way at a time, beside the dots of the piece before.
            moving, results = ring.together(moving, results)
            arrived = gather(moving, cuts[i + 1])

        def others(step: Any, results: list[Any], pieces: Any = pieces, lo: int = lo) -> list[Any]:
            device = (here + step) % n
            part = lax.dynamic_index_in_dim(pieces, device, 0, keepdims=False)
            return put(results, part, device, lo)

        results = lax.fori_loop(1, n, others, results)
    return results
