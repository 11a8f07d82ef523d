"""All-gathers in chunks whose results are scaled, each chunk before the chunks are put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax

from .autodiff.primitive import apply
from .chips.tiles import MATRIX_TILE
from .ops.einsum_op import Operation
from .ops.feasibility import gathers_into_result
from .rings import slicing


def scales_apart(op: Operation) -> bool:
    """Whether chunks of results are scaled one by one; otherwise a memory pass over all of them would
    scale them, after the last chunk."""
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
    op: Operation,
    x: jax.Array,
    rhs: Sequence[jax.Array],
    scaled: Sequence[Callable[[jax.Array], jax.Array]],
) -> list[jax.Array]:
    """The scaled results of an operation that `scales_apart`; the scaling becomes part of each dot.

    Args:
      op: an operation of the form "each".
      x: its lhs, a local shard.
      rhs: its right operands.
      scaled: for each rhs, what scales a chunk of its result.
    """
    dim, out_dim = (labels.index(op.schedule.label or "") for labels in (op.lhs, op.out))
    unchunked = dataclasses.replace(op.schedule, chunks=1, label=None)
    one_chunk = dataclasses.replace(op, schedule=unchunked)
    chunks = []
    with jax.named_scope(f"chunks[{op.schedule}]"):
        for span in slicing.chunk_spans(x.shape[dim], op.schedule.proportions, MATRIX_TILE):
            results = apply(one_chunk, slicing.slice_dim(x, dim, span), *rhs)
            chunks.append([scale(y) for scale, y in zip(scaled, results, strict=True)])
        return [slicing.put_together(ys, out_dim) for ys in zip(*chunks, strict=True)]
