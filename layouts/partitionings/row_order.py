"""Sequences [B, T, n] as rows, in the order in which a layout's collectives cut these.

Rows are sequence by sequence, or position by position where collectives cut positions: rows that lie
together are then on one chip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import ScheduleLike
from .attention_placement import Placement
from .feedforward_layout import FeedForwardLayout


def to_rows(x: jax.Array, layout: FeedForwardLayout) -> jax.Array:
    """[B, T, n] as [rows, n]."""
    return ax.rows(jnp.swapaxes(x, 0, 1) if layout.position_axes else x)


def from_rows(rows: jax.Array, batch: int, layout: FeedForwardLayout) -> jax.Array:
    """[rows, n] as [B, T, n], of `batch` sequences."""
    if layout.position_axes:
        return jnp.swapaxes(rows.reshape(-1, batch, rows.shape[-1]), 0, 1)
    return rows.reshape(batch, -1, rows.shape[-1])


def last_rows(
    rows: jax.Array, counts: jax.Array, layout: FeedForwardLayout, schedule: ScheduleLike
) -> jax.Array:
    """The row of each sequence's last position, as activations are sharded between layers but for
    positions, of which there is one.

    Args:
      rows: [B_W * T, E over the rest], between layers.
      counts: [whole batch], how many positions of each sequence count; of none, the first is taken.
      layout: of the rows.
      schedule: of the sum that brings rows to all chips, if positions are cut.

    Returns:
      [B_W, E over the rest].
    """
    own = ax.own_block(counts, layout.batch_axes, 0)
    at = jnp.maximum(own - 1, 0)
    batch = own.shape[0]
    length, cut = rows.shape[0] // batch, ax.live(layout.position_axes)
    if not layout.position_axes:
        return jnp.take(rows, jnp.arange(batch, dtype=jnp.int32) * length + at, axis=0)
    first = ax.axis_index(cut) * length if cut else 0
    here = (at >= first) & (at < first + length)
    index = jnp.where(
        here, (at - first) * batch + jnp.arange(batch, dtype=jnp.int32), rows.shape[0]
    )
    found = jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
    return ax.all_reduce(found, cut, schedule)


def batch_multiple(layout: FeedForwardLayout, where: Placement, sizes: Mapping[str, int]) -> int:
    """What a batch is a multiple of that all can shard which do."""
    ways = (layout.batch_axes, layout.inner_batch_axes, where.batch_axes)
    return math.lcm(*(ax.size(axes, sizes) for axes in ways))


def length_multiple(layout: FeedForwardLayout, where: Placement, sizes: Mapping[str, int]) -> int:
    """What new positions are a multiple of that all can cut which do."""
    ways = (layout.position_axes, layout.inner_position_axes)
    if where.own_keys:
        # Keys are summed over x while positions are cut over y and z.
        return ax.size((*ways[0], *ways[1]), sizes)
    return math.lcm(*(ax.size(axes, sizes) for axes in ways))


def check_rows(
    batch: int,
    new: int,
    layout: FeedForwardLayout,
    where: Placement,
    sizes: Mapping[str, int],
) -> None:
    """Refuses sequences, or new positions of each, that layouts cannot shard.

    Those that `batch_multiple` and `length_multiple` divide they can.

    Raises:
      ValueError: they do not divide.
    """
    for axes in (layout.batch_axes, layout.inner_batch_axes, where.batch_axes):
        n = ax.size(axes, sizes)
        if batch % n:
            raise ValueError(
                f"{layout} and its attention shard the batch over {axes}, {n} chips, which do not "
                f"divide a batch of {batch}; make the batch a multiple of "
                f"{batch_multiple(layout, where, sizes)}"
            )
    pad = (
        f"pad prompts to a multiple of {length_multiple(layout, where, sizes)} and say how many "
        "positions count (lengths=)"
    )
    for axes in (layout.position_axes, layout.inner_position_axes):
        n = ax.size(axes, sizes)
        if new % n:
            raise ValueError(
                f"{layout} shards positions over {axes}, {n} chips, which do not divide {new} of "
                f"them; {pad}"
            )
    rows, inner = batch * new // ax.size(layout.position_axes, sizes), layout.inner_position_axes
    if where.own_keys and rows % ax.size(inner, sizes):
        raise ValueError(
            f"{layout} sums keys and values of a chip's {rows} rows, {batch} times {new} over "
            f"{layout.position_axes}, over {inner}, {ax.size(inner, sizes)} chips, which do not divide "
            f"them; {pad}"
        )
