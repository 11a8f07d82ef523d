"""The last norm and the unembedding on local shards: logits of some rows, or the log-probabilities of
tokens at all positions, without the logits of all positions at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import tuning
from ..layers.block import normed
from ..layers.embedding import unembed
from ..layers.layer_context import Step
from ..mesh import axis_collectives as ax
from ..models.functions import as_logits
from ..models.params import Params
from ..partitionings.param_specs import vocab_axes
from ..partitionings.row_order import from_rows


def logits_of(rows: jax.Array, params: Params, step: Step) -> jax.Array:
    """Logits of rows [B, E over `boundary_axes`], B over `layout.batch_axes`, that the last layer left.

    Returns:
      [B, stored vocab over `vocab_axes`] in float32 or wider, of all rows on every chip; -inf for
      tokens that only pad the vocabulary.
    """
    config, layout, schedule = step.config, step.feedforward, step.schedule
    c, inverse = normed(rows, params["final_norm"], step)
    table = params["embedding" if config.tied_embedding else "unembedding"]
    logits = unembed(c, table, layout, schedule)
    if inverse is not None:
        logits = logits * ax.all_gather(inverse, layout.batch_axes, 0, schedule).astype(
            logits.dtype
        )
    axes = _sharding_axes(step)
    first = ax.axis_index(axes) * logits.shape[-1] if axes else 0
    return as_logits(logits, config, params.get("b_unembedding"), first)


def log_probabilities(x: jax.Array, targets: jax.Array, params: Params, step: Step) -> jax.Array:
    """Natural logarithms of the probabilities of targets, each after the row in its place.

    Positions are read a slice at a time, so that a chip holds its vocabulary's logits of one slice.

    Args:
      x: rows between layers, as the last layer left them, [B * T, E over `boundary_axes`].
      targets: [B, T] tokens, replicated.
      params: those of the model; only the last norm and the unembedding are read.
      step: of the layers.

    Returns:
      [B, T] in float32 or wider, the same on all chips.
    """
    layout = step.feedforward
    batch, length = targets.shape
    shards = ax.size(ax.live(layout.position_axes))
    own = from_rows(x, batch // ax.size(ax.live(layout.batch_axes)), layout)
    slices, new = _slices(batch * shards, length // shards, x.dtype, step)
    more = slices * new - length // shards
    own = jnp.pad(own, ((0, 0), (0, more), (0, 0)))
    # [B, shards, slices, new], to slices of each shard's positions.
    ids = jnp.pad(targets.reshape(batch, shards, -1), ((0, 0), (0, 0), (0, more)))
    ids = jnp.moveaxis(ids.reshape(batch, shards, slices, new), 2, 0)
    own = jnp.moveaxis(own.reshape(own.shape[0], slices, new, -1), 1, 0)

    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        rows, own_ids = part
        # Where chips have positions of their own, [B, shards * new, E over the rest].
        rows = ax.all_gather(rows, layout.position_axes, 1, step.schedule)
        logits = logits_of(ax.rows(rows), params, step)
        return _log_softmax_at(logits, own_ids.reshape(-1), step).reshape(own_ids.shape)

    made = one((own[0], ids[0]))[None] if slices == 1 else lax.map(one, (own, ids))
    made = jnp.moveaxis(made, 0, 2).reshape(batch, shards, slices * new)
    return made[:, :, : length // shards].reshape(batch, length)


def _slices(rows: int, length: int, dtype: np.dtype, step: Step) -> tuple[int, int]:
    """The number of slices that `length` positions are cut into, and the positions of each.

    Args:
      rows: of all chips for one position.
      length: positions of a chip.
      dtype: of rows between layers.
      step: as `log_probabilities`.
    """
    config = step.config
    vocab = config.stored_vocab // ax.size(_sharding_axes(step))
    row_bytes = rows * max(4 * vocab, config.d_model * dtype.itemsize)
    slices = -(-length // max(1, tuning.LOGIT_BYTES // row_bytes))
    return slices, -(-length // slices)


def _log_softmax_at(logits: jax.Array, targets: jax.Array, step: Step) -> jax.Array:
    """log(softmax(logits)) [rows] at targets [rows], of logits [rows, vocab over `vocab_axes`]; three
    numbers of each row are sent."""
    axes = ax.names(_sharding_axes(step))
    local = logits.shape[-1]
    index = targets - (lax.axis_index(axes) * local if axes else 0)
    mine = (index >= 0) & (index < local)
    top = jnp.max(logits, axis=-1)
    top = lax.pmax(top, axes) if axes else top
    scaled = logits - top[:, None]
    picked = jnp.take_along_axis(scaled, jnp.clip(index, 0, local - 1)[:, None], axis=-1)[:, 0]
    sums = jnp.stack([jnp.sum(jnp.exp(scaled), axis=-1), jnp.where(mine, picked, 0)])
    total, at_target = lax.psum(sums, axes) if axes else sums
    return at_target - jnp.log(total)


def _sharding_axes(step: Step) -> tuple[str, ...]:
    """The axes of more than one chip that shard the vocabulary."""
    sizes = {axis: ax.axis_size(axis) for axis in ax.AXES}
    return ax.live(vocab_axes(step.config, sizes))
