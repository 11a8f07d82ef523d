"""Attention on local shards: the projections, the rotary embedding and the scores."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, Axes, Weight
from ..models.alibi import alibi_slopes
from ..models.cache import Entries
from ..models.functions import add_bias, scale_rows, wide
from ..models.norms import norm_moments, normalize_heads
from ..models.stacked_params import LayerWeights
from ..partitionings.attention_placement import FeatureSharding, in_feature_order
from ..partitionings.feedforward_layout import Outgoing, boundary_shard, feature_bias
from ..partitionings.weight_stationary import project_in_token_sharded
from .attention_scores import HeadTerms, Segment, attend
from .head_columns import from_attention, to_attention
from .int8_activations import incoming, outgoing
from .layer_context import Past, Step


def attention(
    x: jax.Array, weights: LayerWeights, step: Step, past: Past | None, prefix: Past | None
) -> tuple[jax.Array, Past]:
    """Attention without its norm; x is [rows, E over the rest]."""
    columns, _ = project_heads(x, weights, step, None, [])
    o, new = attend_columns(columns, weights, step, past, prefix)
    layout, schedule = step.feedforward, step.schedules.projections
    y = layout.project_out(outgoing([o], step.config, layout, schedule), schedule)
    return add_output_bias(y, weights, step, "b_o"), new


def project_heads(
    c: jax.Array,
    weights: LayerWeights,
    step: Step,
    factor: jax.Array | None,
    others: Sequence[Weight],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Columns of q and kv, and of `others`, which are stored like the feedforward's.

    Args:
      c: [rows, E over the rest].
      weights: "w_q" and "w_kv".
      step: shared by the layers.
      factor: [rows, 1], by which q and kv are multiplied after the projection; None for 1.
      others: input matrices of the same activations. Their collectives come after those of
        attention, which these larger matmuls can then overlap.

    Returns:
      q and kv as `attend_columns` takes them; and the others as `project_in` leaves them, not
      multiplied.
    """
    heads = [weights[name] for name in ("w_q", "w_kv")]
    layout, place_, schedule = step.feedforward, step.placement, step.schedules.projections
    stored = [place_.queries.stored, place_.keys.stored]
    feature_axes, overlaps = [WEIGHT_AXES] * len(others), step.schedules.overlaps
    inputs = overlaps.inputs
    narrow = incoming(c, step.config, layout, schedule)
    if place_.token_sharded:
        columns = project_in_token_sharded(narrow, heads, step.schedule, overlaps.heads)
        rest = layout.project_in(narrow, others, feature_axes, schedule, inputs) if others else []
        if factor is not None:
            factor = ax.own_block(factor, ("x",), 0)
    elif place_.keys_before_gather:
        # A chip's own rows, which it need not gather.
        keys = ax.local_einsum("me,ef->mf", narrow, heads[1]).astype(c.dtype)
        keys = ax.reduce_scatter(keys, ("x",), 0, step.schedule)
        axes = [stored[0], *feature_axes]
        made = layout.project_in(narrow, [heads[0], *others], axes, schedule, inputs)
        columns, rest = [made[0], keys], made[1:]
    else:
        axes = [*stored, *feature_axes]
        made = layout.project_in(narrow, [*heads, *others], axes, schedule, inputs)
        columns, rest = made[:2], made[2:]
    return [scale_rows(y, factor) for y in columns], rest


def add_output_bias(y: jax.Array, weights: LayerWeights, step: Step, *names: str) -> jax.Array:
    """y plus those of its biases [E] that there are."""
    for name in names:
        if name in weights:
            y = add_bias(y, boundary_shard(step.feedforward, weights[name], step.config.d_model))
    return y


def attend_columns(
    projected: list[jax.Array],
    weights: LayerWeights,
    step: Step,
    past: Past | None,
    prefix: Past | None,
) -> tuple[Outgoing, Past]:
    """From projected q and kv to the attended values, on their way to the output projection.

    Args:
      projected: q and kv, [rows, features] each, as `project_heads` leaves them.
      weights: for the biases.
      step: shared by the layers.
      past, prefix: as in `attention`.

    Returns:
      What `project_out` takes, and the new keys and values.
    """
    config, place_ = step.config, step.placement
    q, kv = (
        _to_heads(_clipped(_biased(y, weights, name, step, columns), step), step, columns, row_axes)
        for y, name, columns, row_axes in zip(
            projected,
            ("b_q", "b_kv"),
            (place_.queries, place_.keys),
            ((), place_.key_token_axes),
            strict=True,
        )
    )
    with jax.named_scope("attend"):
        k, v = kv[:, :, 0::2], kv[:, :, 1::2]
        if config.query_key_norm is not None:
            q = _normed_heads(q, weights["norm_q"], place_.queries, config.heads, step)
            k = _normed_heads(k, weights["norm_k"], place_.keys, config.kv_heads, step)
        q, k = step.rotated(q, k)
        new_k, new_v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        segments = [_segment(new_k, new_v, step, jnp.zeros_like(step.lengths), causal=True)]
        if past is not None:
            held = step.lengths
            if step.rolls:
                held = jnp.minimum(held, past[0].size)
            segments.append(_segment(*past, step, step.lengths, lengths=held, rolls=step.rolls))
        if prefix is not None:
            lengths, stored = None, prefix[0].size
            # Layers with a window may have the last positions only.
            kept = min(step.prefix_length, stored)
            if stored != kept:
                lengths = jnp.full(step.lengths.shape, kept, jnp.int32)
            segments.append(_segment(*prefix, step, kept + step.lengths, lengths=lengths))
        terms = _head_terms(weights, place_.queries, step)
        o = attend(q, segments, config, step.first_query, terms)
    columns = place_.queries
    o = from_attention(o.reshape(*o.shape[:2], -1), columns, step)
    like = past[0] if past is not None else Entries(new_k)
    outgoing = Outgoing(o, weights["w_o"], place_.token_sharded)
    return outgoing, (like.like(new_k), like.like(new_v))


def _biased(
    y: jax.Array, weights: LayerWeights, name: str, step: Step, columns: FeatureSharding
) -> jax.Array:
    if name not in weights:
        return y
    bias = weights[name]
    if not step.placement.token_sharded:
        bias = feature_bias(step.feedforward, bias, columns.stored, step.schedule)
    return add_bias(y, bias)


def _clipped(y: jax.Array, step: Step) -> jax.Array:
    limit = step.config.clip_qkv
    return y if limit is None else jnp.clip(y, -limit, limit)


def _to_heads(
    y: jax.Array, step: Step, columns: FeatureSharding, row_axes: Sequence[Axes]
) -> jax.Array:
    """[B, T, heads, D] from [B * T, n], sharded as in attention."""
    y = to_attention(y, columns, step, row_axes)
    return y.reshape(*y.shape[:2], -1, step.config.d_head)


def _normed_heads(
    x: jax.Array, scale: jax.Array, columns: FeatureSharding, heads: int, step: Step
) -> jax.Array:
    """Queries or keys [B, T, heads, D], normalized as the config says.

    Args:
      x: sharded as in attention.
      scale: [stored heads * D], replicated.
      columns: how heads are sharded.
      heads: of the model, without padding, whose zeros add nothing to a row's moments.
      step: shared by the layers.
    """
    config = step.config
    assert config.query_key_norm is not None
    own, d = _own_heads(scale, columns, step), config.d_head
    if config.query_key_norm_span == "head":
        moments = norm_moments(x, config.query_key_norm)
        return normalize_heads(x, own, config, moments, d)
    rows = x.reshape(*x.shape[:2], 1, -1)
    if config.query_key_norm == "rmsnorm":
        moments = ax.all_reduce_few(norm_moments(rows, "rmsnorm"), columns.kept, step.schedule)
        return normalize_heads(x, own, config, moments, heads * d)
    rows = rows.astype(wide(x.dtype))
    total = ax.all_reduce_few(jnp.sum(rows, -1, keepdims=True), columns.kept, step.schedule)
    mean = total / (heads * d)
    # Padded heads deviate from the mean, but do not count.
    is_query = scale.shape[0] == config.stored_heads * d
    real = config.real_heads if is_query else config.real_kv_heads
    own_counted = _own_heads(jnp.asarray(np.repeat(real, d), rows.dtype), columns, step)
    squares = jnp.sum((rows - mean) ** 2 * own_counted, -1, keepdims=True)
    squares = ax.all_reduce_few(squares, columns.kept, step.schedule)
    moments = jnp.concatenate([mean, squares], axis=-1)
    return normalize_heads(x, own, config, moments, heads * d)


def _own_heads(vector: jax.Array, columns: FeatureSharding, step: Step) -> jax.Array:
    """A replicated vector [stored heads * n] as [heads of this chip in attention * n], of any n."""
    arrived = columns.arrived(step.placement.moved)
    axes = in_feature_order((*columns.kept, *(a for a in arrived if a not in columns.kept)))
    blocks = vector.reshape(*(ax.axis_size(axis) for axis in axes), -1)
    for dim, axis in enumerate(axes):
        if axis in columns.kept:
            blocks = ax.own_block(blocks, (axis,), dim)
    return blocks.reshape(-1)


def _head_terms(weights: LayerWeights, columns: FeatureSharding, step: Step) -> HeadTerms | None:
    """What the heads of this chip in attention have for themselves."""
    config = step.config
    if config.alibi is None and not config.sinks:
        return None
    slopes = None if config.alibi is None else jnp.asarray(alibi_slopes(config))
    sinks = weights["sinks"] if config.sinks else None
    own = (None if x is None else _own_heads(x, columns, step) for x in (slopes, sinks))
    return HeadTerms(*own)


def _segment(
    k: jax.Array | Entries,
    v: jax.Array | Entries,
    step: Step,
    before: jax.Array,
    *,
    lengths: jax.Array | None = None,
    causal: bool = False,
    rolls: bool = False,
) -> Segment:
    """Keys and values of the heads that this chip's queries read, as a segment that starts `before` [B]
    positions before the new ones; if it `rolls`, its position 0 does."""
    pairs = [(x.values, x.scale) if isinstance(x, Entries) else (x, None) for x in (k, v)]
    table, kept = step.placement.selection, step.placement.queries.kept
    if table is not None:
        index = jnp.asarray(table)
        for axis in kept:
            index = lax.dynamic_index_in_dim(index, ax.axis_index(axis), 0, keepdims=False)
        pairs = [
            (
                jnp.take(values, index, axis=-3),
                None if scale is None else jnp.take(scale, index, axis=-2),
            )
            for values, scale in pairs
        ]
    (keys, key_scale), (values, value_scale) = pairs
    window = step.kind.window
    starts = None if window is None and step.config.alibi is None else before
    return Segment(keys, values, key_scale, value_scale, lengths, causal, window, starts, rolls)
