"""Direct gathers in parts, each beside the dots of the one before: pieces of every shard of a free
label, or chunks of another one whose results are scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import lax

from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import End, Operation
from ..rings import ring_steps as ring
from ..rings import slicing as blocks
from .local_ops import as_sent, multiply


def run(op: Operation, end: End, x: Any, rhs: list[Any]) -> list[Any]:
    """The local results, each a dot for the own shard, then one for every device and piece."""
    dim, out_dim = op.lhs.index(end.label), op.out.index(end.label)
    shard, n, dtype = x.shape[dim], ring.total(end.axes), x.dtype
    cuts = blocks.pieces_of(shard, op.schedule.shares, MATRIX_TILE)
    here = lax.axis_index(end.axes)

    def put(results: list[Any], part: Any, device: Any, lo: int) -> list[Any]:
        """Results with the columns that `part` of a device's shard makes."""
        found = []
        for y, each in zip(results, rhs, strict=True):
            new = multiply(op, part.astype(dtype), each).astype(op.dtype)
            y = blocks.room(new, out_dim, n * shard) if y is None else y
            found.append(blocks.put(y, new, out_dim, (n,), 0, device, lo, part.shape[dim]))
        return found

    def gather(moving: Any, cut: tuple[int, int]) -> Any:
        return lax.all_gather(blocks.cut(moving, dim, *cut), end.axes, axis=0, tiled=False)

    moving = as_sent(op, x)
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

        results = lax.fori_loop(np.int32(1), np.int32(n), others, results)
    return results
