"""Attention on local shards: the projections, the rotary embedding and the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_einsum.chips import Chip, for_chip

from ..mesh import axis_collectives as ax
from ..mesh.axes import AxesLike
from ..mesh.axis_collectives import WEIGHT_AXES, Axes, ScheduleLike
from ..models.cache import Entries
from ..models.config import ModelConfig
from ..models.functions import add_bias, rotate, scale_rows
from ..partitionings.attention_layouts import AttentionLayout
from ..partitionings.attention_placement import Columns
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    Outgoing,
    boundary_shard,
    feature_bias,
)
from ..partitionings.weight_stationary import project_rows
from .attention_scores import Segment, attend
from .head_columns import from_attention, to_attention
from .layer_checks import ATTENTION
from .layer_context import LayerCall, Past, Step


def attention(
    x: jax.Array,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    attention_layout: AttentionLayout,
    *,
    lengths: jax.Array | None = None,
    past: Past | None = None,
    prefix: Past | None = None,
    mesh: Any = None,
    axes: AxesLike = None,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> tuple[jax.Array, Past]:
    """Causal attention of a block, without its norm, on local shards inside shard_map.

    Args:
      x: [B_W, T, E over the rest]: new positions, sharded as `activation_spec(layout, axes)` says.
      weights: of one layer, stored as `block_specs` says: "w_q", "w_kv", "w_o", and their
        biases if the config has any.
      config: heads and rotary embedding.
      layout: of the projections, that of the block's feedforward.
      attention_layout: HeadSharded() or BatchSharded(...).
      lengths: [whole batch] int32, the positions that precede x in `past`; None for none. Inside a
        shard_map the whole is that over x, y and z, of which a data axis has a part.
      past: keys and values of this layer, `Entries` of [B, K, S, D], sharded over batch and heads
        as `place` says; positions from `lengths` on are not read.
      prefix: keys and values [K, P, D] that come before `past` in every sequence.
      mesh: given outside of a shard_map, where all of these are global arrays; as `feedforward`.
      axes: what the mesh calls x, y and z, if something else, and which others shard the batch; a
        `MeshAxes`.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`.
      chip: for which schedules are chosen, itself or its name; by default that of the mesh.

    Returns:
      As `x`; and the new keys and values, `Entries` of [B, K, T, D], for the cache.

    Raises:
      ValueError: while tracing, in words, for sizes that do not fit.
    """
    call = LayerCall(config, layout, attention_layout, axes, schedule)
    lengths = call.check(x, weights, ATTENTION, lengths, past, prefix, mesh)
    with for_chip(chip):
        return call(_attention, x, weights, lengths, past, prefix, mesh)


def _attention(
    x: jax.Array, weights: Mapping[str, Any], step: Step, past: Past | None, prefix: Past | None
) -> tuple[jax.Array, Past]:
    columns, _ = project_heads(x, weights, step, None, [])
    o, new = attend_columns(columns, weights, step, past, prefix)
    y = step.feedforward.project_out([o], step.schedule)
    return add_output_bias(y, weights, step, "b_o"), new


def project_heads(
    c: jax.Array,
    weights: Mapping[str, Any],
    step: Step,
    factor: jax.Array | None,
    others: Sequence[Any],
    overlap_seconds: float = 0.0,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Columns of q and kv, and of `others`, which are stored like the feedforward's.

    Args:
      c: [rows, E over the rest].
      weights: "w_q" and "w_kv".
      step: what layers share.
      factor: [rows, 1], what q and kv are still to be multiplied by; None for nothing.
      others: input matrices of the same activations. Their collectives come after those of
        attention, whose own can then run beside these larger matmuls.
      overlap_seconds: seconds of work that the last of their scatters can run beside.

    Returns:
      q and kv as `attend_columns` takes them; and the others as `project_in` leaves them, not
      multiplied.
    """
    heads = [weights[name] for name in ("w_q", "w_kv")]
    layout, place_ = step.feedforward, step.placement
    stored = [place_.queries.stored, place_.keys.stored]
    if place_.by_rows:
        columns = project_rows(c, heads, step.schedule)
        rest = (
            layout.project_in(
                c, others, [WEIGHT_AXES] * len(others), step.schedule, overlap_seconds
            )
            if others
            else []
        )
        if factor is not None:
            factor = ax.own_block(factor, ("x",), 0)
    elif place_.own_keys:
        # Of a chip's own rows, which it need not gather.
        keys = ax.local_einsum("me,ef->mf", c, heads[1]).astype(c.dtype)
        keys = ax.reduce_scatter(keys, ("x",), 0, step.schedule)
        axes = [stored[0], *([WEIGHT_AXES] * len(others))]
        made = layout.project_in(c, [heads[0], *others], axes, step.schedule, overlap_seconds)
        columns, rest = [made[0], keys], made[1:]
    else:
        axes = [*stored, *([WEIGHT_AXES] * len(others))]
        made = layout.project_in(c, [*heads, *others], axes, step.schedule, overlap_seconds)
        columns, rest = made[:2], made[2:]
    return [scale_rows(y, factor) for y in columns], rest


def add_output_bias(y: jax.Array, weights: Mapping[str, Any], step: Step, *names: str) -> jax.Array:
    """y plus those of its biases [E] that there are."""
    for name in names:
        if name in weights:
            y = add_bias(y, boundary_shard(step.feedforward, weights[name], step.config.d_model))
    return y


def attend_columns(
    projected: list[jax.Array],
    weights: Mapping[str, Any],
    step: Step,
    past: Past | None,
    prefix: Past | None,
) -> tuple[Outgoing, Past]:
    """From columns of q and kv to columns of what attention makes of them.

    Args:
      projected: [rows, columns] each, as `project_heads` leaves them.
      weights: for the biases.
      step: what layers share.
      past, prefix: as in `attention`.

    Returns:
      What `project_out` takes, and the new keys and values.
    """
    config, place_ = step.config, step.placement
    q, kv = (
        _to_heads(_biased(y, weights, name, step, columns), step, columns, row_axes)
        for y, name, columns, row_axes in zip(
            projected,
            ("b_q", "b_kv"),
            (place_.queries, place_.keys),
            ((), place_.key_row_axes),
            strict=True,
        )
    )
    with jax.named_scope("attend"):
        k, v = kv[:, :, 0::2], kv[:, :, 1::2]
        q, k = rotate(q, step.query_tables, config.rotary), rotate(k, step.tables, config.rotary)
        new_k, new_v = (jnp.swapaxes(each, 1, 2) for each in (k, v))
        segments = [_segment(new_k, new_v, step, causal=True)]
        if past is not None:
            segments.append(_segment(*past, step, lengths=step.lengths))
        if prefix is not None:
            lengths = None
            if prefix[0].values.shape[-2] != step.prefix_length:
                lengths = jnp.full(step.lengths.shape, step.prefix_length, jnp.int32)
            segments.append(_segment(*prefix, step, lengths=lengths))
        o = attend(q, segments, step.first_query)
    columns = place_.queries
    o = from_attention(o.reshape(*o.shape[:2], -1), columns, step)
    like = past[0] if past is not None else Entries(new_k)
    outgoing = Outgoing(o, weights["w_o"], place_.by_rows)
    return outgoing, (like.like(new_k), like.like(new_v))


def _biased(
    y: jax.Array, weights: Mapping[str, Any], name: str, step: Step, columns: Columns
) -> jax.Array:
    if name not in weights:
        return y
    bias = weights[name]
    if not step.placement.by_rows:
        bias = feature_bias(step.feedforward, bias, columns.stored, step.schedule)
    return add_bias(y, bias)


def _to_heads(y: jax.Array, step: Step, columns: Columns, row_axes: Sequence[Axes]) -> jax.Array:
    """[B, T, heads, D] from rows and columns [B * T, n], sharded as attention wants them."""
    y = to_attention(y, columns, step, row_axes)
    return y.reshape(*y.shape[:2], -1, step.config.d_head)


def _segment(k: Any, v: Any, step: Step, **how: Any) -> Segment:
    """Keys and values of the heads that this chip's queries read, as a segment."""
    parts = [
        (each.values, each.scale) if isinstance(each, Entries) else (each, None) for each in (k, v)
    ]
    table, kept = step.placement.selection, step.placement.queries.kept
    if table is not None:
        index = jnp.asarray(table)
        for axis in kept:
            index = lax.dynamic_index_in_dim(index, ax.axis_index(axis), 0, keepdims=False)
        parts = [
            (
                jnp.take(values, index, axis=-3),
                None if scale is None else jnp.take(scale, index, axis=-2),
            )
            for values, scale in parts
        ]
    (keys, key_scale), (values, value_scale) = parts
    return Segment(keys, values, key_scale, value_scale, **how)
