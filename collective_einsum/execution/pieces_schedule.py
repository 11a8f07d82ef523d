"""Direct gathers in parts, each beside the dots of the one before: pieces of every shard of a free
label, or chunks of another one whose results are scaled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import lax

from ..autodiff.primitive import apply
from ..chips.tiles import MATRIX_TILE
from ..ops.feasibility import gathers_into_result
from ..rings import ring_steps as ring
from ..rings import slicing as blocks

if TYPE_CHECKING:
    from ..ops.einsum_op import End, Operation


def scales_apart(op: Operation) -> bool:
    """Whether chunks of results would be scaled in a pass over all of them, unless one by one."""
    label, alone = op.schedule.label, op.gather is not None and op.scatter is None
    if (
        not alone
        or op.schedule.direction != "async"
        or label is None
        or gathers_into_result(op, label)
    ):
        return False
    return label in op.lhs and label in op.out and label not in op.rhs


def run_scaled(
    op: Operation, x: Any, rhs: Sequence[Any], scaled: Sequence[Callable[[Any], Any]]
) -> list[Any]:
    """The results of an operation that `scales_apart`, each by a function: it becomes part of a dot."""
    dim, out_dim = (labels.index(op.schedule.label or "") for labels in (op.lhs, op.out))
    whole = dataclasses.replace(op.schedule, chunks=1, label=None)
    each = dataclasses.replace(op, schedule=whole)
    found = []
    with jax.named_scope(f"chunks[{op.schedule}]"):
        for cut in blocks.pieces_of(x.shape[dim], op.schedule.shares, MATRIX_TILE):
            results = apply(each, blocks.cut(x, dim, *cut), *rhs)
            found.append([scale(y) for scale, y in zip(scaled, results, strict=True)])
        return [blocks.put_together(chunks, out_dim) for chunks in zip(*found, strict=True)]


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
            new = op.product(part.astype(dtype), each).astype(op.dtype)
            y = blocks.room(new, out_dim, n * shard) if y is None else y
            found.append(blocks.put(y, new, out_dim, (n,), 0, device, lo, part.shape[dim]))
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

        results = lax.fori_loop(np.int32(1), np.int32(n), others, results)
    return results
