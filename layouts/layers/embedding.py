"""Embedding and unembedding with tables [vocab, E] sharded over the vocabulary, on local shards."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

import collective_einsum as ce

from .. import tuning
from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import AXES, Axes, ScheduleLike
from ..models.config import ModelConfig
from ..models.functions import scale_embedding, wide
from ..partitionings.feedforward_layout import FeedForwardLayout, boundary_axes
from ..partitionings.param_specs import table_axes, vocab_axes
from ..partitionings.row_order import to_rows


def embed(
    tokens: jax.Array,
    table: jax.Array | ce.Quantized,
    config: ModelConfig,
    layout: FeedForwardLayout,
    dtype: DTypeLike,
    schedule: ScheduleLike,
    positions: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The rows of the table that tokens [batch, T] name, as activations between layers.

    Each chip looks up the tokens of its shard of the vocabulary, and reduce-scatters add them up. A long
    prompt is read a slice at a time.

    Args:
      tokens: replicated integers; the row of -1 is zeros.
      table: [vocab over `vocab_axes`, E], an array or a Quantized.
      config: sizes.
      layout: whose boundary sharding to leave.
      dtype: of the result.
      schedule: of the reduce-scatters.
      positions: of the first tokens, [batch] int32; and the table of learned positions, [positions over
        `table_axes`, E], of which the rows of tokens that are not -1 are added. None for no such table.

    Returns:
      [rows, E over the rest], times `embedding_scale` without the learned positions.
    """
    row_axes = ax.live(layout.batch_axes or layout.position_axes)
    rest = ax.live(boundary_axes(layout))
    shards = ax.size(row_axes)
    wanted = [tokens]
    if positions is not None:
        places = positions[0][:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        wanted.append(jnp.where(tokens < 0, -1, places))
    by_shard = [to_rows(ids[:, :, None], layout).reshape(shards, -1) for ids in wanted]
    count = by_shard[0].shape[1]
    row_bytes = shards * config.d_model * jnp.dtype(dtype).itemsize
    sizes = {axis: lax.axis_size(axis) for axis in AXES}
    slices = -(-count // max(1, tuning.LOOKUP_BYTES // row_bytes))
    length = -(-count // slices)

    # Nothing overlaps these sums.
    alone = "blocking" if schedule == "auto" else schedule

    def look_up(ids: Sequence[jax.Array]) -> jax.Array:
        rows = _rows(table, ids[0], vocab_axes(config, sizes), dtype)
        if positions is not None:
            # One sum over chips adds up both.
            own = _rows(
                positions[1], ids[1], table_axes(config.learned_positions or 1, sizes), dtype
            )
            rows = scale_embedding(rows, config) + own
        # A dimension of its own: H11 in docs/compiler.md.
        rows = ax.reduce_scatter(rows, row_axes, 0, alone).reshape(-1, rows.shape[-1])
        rows = ax.reduce_scatter_alone(rows, rest, 1, schedule)
        return ax.all_reduce(rows, layout.repeated_axes, schedule)

    if slices == 1:
        x = look_up(by_shard)
    else:
        x = lax.map(look_up, [_sliced(ids, slices, length) for ids in by_shard])
        x = x.reshape(slices * length, -1)[:count]
    return scale_embedding(x, config) if positions is None else x


def _sliced(ids: jax.Array, slices: int, length: int) -> jax.Array:
    """[slices, shards, length] from [shards, at most slices * length]."""
    shards, count = ids.shape
    padded = jnp.pad(ids, ((0, 0), (0, slices * length - count)))
    return jnp.moveaxis(padded.reshape(shards, slices, length), 1, 0)


def _rows(
    table: jax.Array | ce.Quantized, ids: jax.Array, axes: Axes, dtype: DTypeLike
) -> jax.Array:
    """The rows [..., E] of ids [...] that this chip has to give of a table sharded over `axes`, zero
    elsewhere."""
    local = table.shape[0]
    axes = ax.live(axes)
    first = lax.axis_index(axes) * local if axes else 0
    index = ids - first
    mine = (index >= 0) & (index < local)
    # Where chips hold the same rows, the first of them answers.
    for axis in AXES:
        if axis not in axes and lax.axis_size(axis) > 1:
            mine = mine & (lax.axis_index(axis) == 0)
    # An index beyond the rows gives zeros.
    index = jnp.where(mine, index, local)
    if isinstance(table, ce.Quantized):
        scale = jnp.take(table.scale, index, axis=0, mode="fill", fill_value=0)
        values = jnp.take(table.values, index, axis=0, mode="fill", fill_value=0)
        return (values.astype(scale.dtype) * scale).astype(dtype)
    return jnp.take(table, index, axis=0, mode="fill", fill_value=0).astype(dtype)


def unembed(
    x: jax.Array, table: jax.Array | ce.Quantized, layout: FeedForwardLayout, schedule: ScheduleLike
) -> jax.Array:
    """Logits of rows x [B_W, E over the rest].

    Args:
      x: normalized.
      table: [vocab over `vocab_axes`, E], an array or a Quantized.
      layout: whose boundary sharding x has.
      schedule: of the gather.

    Returns:
      [batch, vocab over `vocab_axes`] in the wide dtype, of the full batch on every chip.
    """
    batch_axes, rest = ax.live(layout.batch_axes), ax.live(boundary_axes(layout))
    # The last gather goes with the einsum. The others come first, since one over all axes at once
    # would be an all-reduce: H13 in docs/compiler.md.
    if batch_axes:
        label, axes = "b", batch_axes[:1]
        x = ax.all_gather(x, rest, 1, schedule)
        x = ax.all_gather(x, batch_axes[1:], 0, schedule)
    else:
        label, axes = "e", rest[:1] or AXES[:1]
        x = ax.all_gather(x, rest[1:], 1, schedule)
    return ce.all_gather_einsum(
        "be,ve->bv",
        x,
        table,
        axis_name=axes,
        gather=label,
        schedule=schedule,
        preferred_element_type=wide(x.dtype),
    )
