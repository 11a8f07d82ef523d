"""From projected columns to unsharded heads or sequences, and back, on local shards."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import Axes
from ..partitionings.attention_placement import FeatureSharding, in_feature_order
from ..partitionings.row_order import from_rows, to_rows
from .layer_context import Step


def to_attention(
    y: jax.Array, columns: FeatureSharding, step: Step, row_axes: Sequence[Axes] = ()
) -> jax.Array:
    """[B * T, n] as attention wants them: unsharded heads in order, the batch sharded further.

    Tokens are gathered over each of `row_axes` in turn, the minor ones first. Returns
    [B, T, n], of other B, T and n.
    """
    moved, schedule = step.placement.moved, step.schedule
    y = ax.all_gather(y, columns.gathered, 1, schedule)
    for axes in row_axes:
        y = ax.all_gather(y, axes, 0, schedule)
    y = _by_sequence(y, step)
    exchanged = columns.exchanged(moved)
    if exchanged:
        y = ax.all_to_all(y, exchanged, 0, y.ndim - 1, schedule)
    y = ax.own_block(y, [axis for axis in moved if axis not in exchanged], 0)
    y = _sorted_blocks(y, columns.arrived(moved), in_feature_order(columns.arrived(moved)))
    # Over axes that did not shard the features, every chip takes its slice.
    y = ax.own_block(y, [a for a in columns.kept if a not in columns.sharded], y.ndim - 1)
    return y if y.ndim == 3 else y[:, None]


def from_attention(y: jax.Array, columns: FeatureSharding, step: Step) -> jax.Array:
    """The inverse of `to_attention`, for queries: [B, T, n] to [B * T, n]."""
    moved, schedule = step.placement.moved, step.schedule
    y = _by_sequence(to_rows(y, step.feedforward), step)
    y = _sorted_blocks(y, in_feature_order(columns.arrived(moved)), columns.arrived(moved))
    exchanged = columns.exchanged(moved)
    y = ax.all_gather(y, [axis for axis in moved if axis not in exchanged], 0, schedule)
    if exchanged:
        y = ax.all_to_all(y, exchanged, y.ndim - 1, 0, schedule)
    y = to_rows(y, step.feedforward) if y.ndim == 3 else y
    return ax.own_block(y, columns.gathered, 1)


def _by_sequence(y: jax.Array, step: Step) -> jax.Array:
    """Rows [B * T, n] as [B, T, n]; as they are if T is 1, since the TPU compiler moves matrices in
    a tenth of the time that it takes for as much in three dimensions."""
    if step.new == 1:
        return y
    if step.feedforward.position_axes:
        return from_rows(y, step.lengths.shape[0], step.feedforward)
    return y.reshape(-1, step.new, y.shape[-1])


def _sorted_blocks(y: jax.Array, have: Axes, want: Axes) -> jax.Array:
    """The last dimension, which is made of blocks over `have`, with those in the order of `want`."""
    if have == want:
        return y
    sizes = [ax.axis_size(axis) for axis in have]
    lead = y.ndim - 1
    blocks = y.reshape(*y.shape[:-1], *sizes, -1)
    order = [lead + have.index(axis) for axis in want]
    return blocks.transpose(*range(lead), *order, blocks.ndim - 1).reshape(y.shape)
