"""Sequences [B, T, n] as rows [B * T, n], in the order in which a layout shards them.

Rows come sequence by sequence, or position by position where a layout shards positions, so that the
rows of a chip are consecutive.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import ScheduleLike
from .attention_placement import Placement
from .feedforward_layout import FeedForwardLayout, token_axes


def to_rows(x: jax.Array, layout: FeedForwardLayout) -> jax.Array:
    """[B, T, n] as [rows, n]."""
    return ax.rows(jnp.swapaxes(x, 0, 1) if layout.position_axes else x)


def from_rows(rows: jax.Array, batch: int, layout: FeedForwardLayout) -> jax.Array:
    """[rows, n] as [B, T, n], of `batch` sequences."""
    if layout.position_axes:
        return jnp.swapaxes(rows.reshape(-1, batch, rows.shape[-1]), 0, 1)
    return rows.reshape(batch, -1, rows.shape[-1])


def own_rows(x: jax.Array, layout: FeedForwardLayout) -> jax.Array:
    """[B, T], replicated, as [rows of this chip between layers]."""
    return ax.own_block(to_rows(x[:, :, None], layout)[:, 0], token_axes(layout), 0)


def last_rows(
    rows: jax.Array, counts: jax.Array, layout: FeedForwardLayout, schedule: ScheduleLike
) -> jax.Array:
    """The row of each sequence's last position, sharded as activations are between layers.

    Args:
      rows: [B * T, E over `boundary_axes`], B over `layout.batch_axes` and T over
        `layout.position_axes`.
      counts: [B], replicated: how many positions of each sequence count; for 0, the first is taken.
      layout: of the rows.
      schedule: of the all-reduce that sends rows to all chips, where positions are sharded.

    Returns:
      [B, E over `boundary_axes`], B over `layout.batch_axes`.
    """
    own = ax.own_block(counts, layout.batch_axes, 0)
    at = jnp.maximum(own - 1, 0)
    batch = own.shape[0]
    length, sharded = rows.shape[0] // batch, ax.live(layout.position_axes)
    if not layout.position_axes:
        return jnp.take(rows, jnp.arange(batch, dtype=jnp.int32) * length + at, axis=0)
    first = ax.axis_index(sharded) * length if sharded else 0
    here = (at >= first) & (at < first + length)
    index = jnp.where(
        here, (at - first) * batch + jnp.arange(batch, dtype=jnp.int32), rows.shape[0]
    )
    last = jnp.take(rows, index, axis=0, mode="fill", fill_value=0)
    return ax.all_reduce(last, sharded, schedule)


def batch_multiple(layout: FeedForwardLayout, where: Placement, sizes: Mapping[str, int]) -> int:
    """The smallest batch that the layouts can shard; they can shard its multiples."""
    ways = (layout.batch_axes, layout.inner_batch_axes, where.batch_axes)
    return math.lcm(*(ax.size(axes, sizes) for axes in ways))


def length_multiple(layout: FeedForwardLayout, where: Placement, sizes: Mapping[str, int]) -> int:
    """The smallest number of new positions that the layouts can shard; they can shard its multiples."""
    ways = (layout.position_axes, layout.inner_position_axes)
    if where.keys_before_gather:
        # The sums of k and v over E_x are scattered over x while y and z shard positions.
        return ax.size((*ways[0], *ways[1]), sizes)
    return math.lcm(*(ax.size(axes, sizes) for axes in ways))


def check_rows(
    batch: int,
    new: int,
    layout: FeedForwardLayout,
    where: Placement,
    sizes: Mapping[str, int],
) -> None:
    """Refuses a batch, or a number of new positions, that the layouts cannot shard. Multiples of
    `batch_multiple` and `length_multiple` pass.

    Raises:
      ValueError: the axes do not divide them.
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
    if where.keys_before_gather and rows % ax.size(inner, sizes):
        raise ValueError(
            f"{layout} scatters the keys and values of a chip's {rows} tokens ({batch} times {new}, "
            f"sharded over {layout.position_axes}) over {inner}, {ax.size(inner, sizes)} chips, which "
            f"do not divide them; {pad}"
        )
