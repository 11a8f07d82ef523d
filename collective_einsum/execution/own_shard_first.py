"""Async all-gathers of one slice of every shard at a time; the dot of the own shard comes first."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax import lax

from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import EinsumCollective, Operation
from ..rings import slicing
from ..rings.permutes import total
from ..rings.slicing import Index, ShardedDim, Span
from ..rings.steps import together
from .local_ops import as_sent, multiply


def run(
    op: Operation, collective: EinsumCollective, x: jax.Array, rhs: list[jax.Array]
) -> list[jax.Array]:
    """The local results: a dot for the own shard, then one for every other device and slice."""
    dim, out_dim = op.lhs.index(collective.label), op.out.index(collective.label)
    shard, n, dtype = x.shape[dim], total(collective.axes), x.dtype
    spans = slicing.chunk_spans(shard, op.schedule.proportions, MATRIX_TILE)
    own = lax.axis_index(collective.axes)
    shards = ShardedDim(dim=out_dim, sizes=(n,), position=0)

    def add(results: list[Any], part: jax.Array, device: Index, start: int) -> list[jax.Array]:
        """The results with what `part` makes, the slice of a device's shard that begins at `start`."""
        span, updated = Span(start, part.shape[dim]), []
        for result, right in zip(results, rhs, strict=True):
            y = multiply(op, part.astype(dtype), right).astype(op.dtype)
            if result is None:
                result = slicing.uninitialized(y, out_dim, n * shard)
            updated.append(shards.write(result, y, device, span))
        return updated

    def gather(sent: jax.Array, span: Span) -> jax.Array:
        return lax.all_gather(
            slicing.slice_dim(sent, dim, span), collective.axes, axis=0, tiled=False
        )

    sent = as_sent(op, x)
    arrived = gather(sent, spans[0])
    results = add([None] * len(rhs), x, own, 0)
    for i, span in enumerate(spans):
        parts = arrived
        if i + 1 < len(spans):
            # One slice is gathered at a time, while the dots of the slice before run.
            sent, results = together(sent, results)
            arrived = gather(sent, spans[i + 1])

        def others(
            step: Any,
            results: list[jax.Array],
            parts: jax.Array = parts,
            start: int = span.start,
        ) -> list[jax.Array]:
            device = (own + step) % n
            part = lax.dynamic_index_in_dim(parts, device, 0, keepdims=False)
            return add(results, part, device, start)

        results = lax.fori_loop(np.int32(1), np.int32(n), others, results)
    return results
