"""The feedforward in which a chip multiplies each of its experts with the tokens that have it only:
tokens are sorted by expert.

In a weight-gathered layout a chip has its own tokens and all experts, or columns of them; in a
weight-stationary one all tokens, and its own experts. No token is dropped, however many have the same
expert. Worthwhile for many tokens: sorted tokens, and weights laid out by expert, are copies.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

import collective_einsum as ce

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, ScheduleLike, Weight
from ..models.config import ModelConfig
from ..models.functions import BIASES, hidden, scale_rows
from ..models.stacked_params import LayerWeights
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    boundary_axes,
    feature_bias,
    gather_features,
    token_axes,
)
from .layer_schedules import LayerSchedules
from .routing import Routing, inner_routing, own_experts

# Names the ops of this way to compute.
SCOPE = "sorted_by_expert"


class _Sorted(NamedTuple):
    """The pairs of a token and one of its experts, those of a chip's experts first, sorted by expert.

    Attributes:
      tokens: [sorted rows], of each.
      blocks: [sorted rows], the expert of each among the chip's.
      counts: [experts of the chip], how many tokens each has.
      places: [tokens, experts per token], where each pair stands among the sorted rows.
      present: [tokens, experts per token], whether its expert is one of the chip's.
    """

    tokens: jax.Array
    blocks: jax.Array
    counts: jax.Array
    places: jax.Array
    present: jax.Array


def grouped_experts(
    c: jax.Array,
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
    routing: Routing,
) -> jax.Array:
    """A feedforward by itself, without the bias of its result; arguments and result as `projected`.

    Each of a chip's experts is one block of its columns, see `ExpertColumns.are_apart`.
    """
    owners, schedule = own_experts(config, layout), schedules.given
    shared = token_axes(layout) if layout.moves_tokens else ()
    c = gather_features(c, layout, config.d_model, schedule)
    c = ax.all_gather(c, shared, 0, schedule)
    routing = inner_routing(routing, layout)
    with jax.named_scope(SCOPE):
        pairs = _sorted(routing, owners)
        count, dtype = owners.shape[0], c.dtype
        x = _rows(c, pairs.tokens)
        inner = []
        for name in config.input_names:
            w = _gathered(weights[name], 1, layout, schedules.projections, dtype)
            w = jnp.swapaxes(w.reshape(w.shape[0], count, -1), 0, 1)
            inner.append(_multiplied(x, w, pairs.counts))
        factors = None if factor is None else _rows(factor, pairs.tokens)
        biases = {}
        for name in BIASES:
            if name in weights:
                bias = feature_bias(layout, weights[name], WEIGHT_AXES, schedule)
                biases[name] = _rows(bias.reshape(count, -1), pairs.blocks)
        h = hidden([scale_rows(y, factors) for y in inner], biases, config)
        w = _gathered(weights["w_out"], 0, layout, schedules.projections, dtype)
        rows = _multiplied(h, w.reshape(count, -1, w.shape[1]), pairs.counts)
        y = _sum_of_experts(rows, pairs, routing)
    y = y.astype(dtype)
    if layout.repeated_axes:
        return ax.all_reduce(y, layout.repeated_axes, schedule)
    if shared:
        return ax.reduce_scatter_alone(y, shared, 0, schedule)
    return ax.reduce_scatter_alone(y, boundary_axes(layout), 1, schedule)


def _rows(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rows of x at places that it has: the default would fill what lay outside, in a memory pass."""
    return jnp.take(x, places, axis=0, mode="clip")


def _sorted(routing: Routing, owners: jax.Array) -> _Sorted:
    tokens, per_token = routing.experts.shape
    count = owners.shape[0]
    matches = routing.experts.reshape(-1, 1) == owners
    present = jnp.any(matches, axis=1)
    blocks = jnp.where(present, jnp.argmax(matches, axis=1), count).astype(jnp.int32)
    order = jnp.argsort(blocks, stable=True)
    # A token has no more experts of a chip than the chip has.
    kept = order[: tokens * min(per_token, count)]
    return _Sorted(
        tokens=kept // per_token,
        blocks=jnp.minimum(blocks[kept], count - 1),
        counts=jnp.sum(matches, axis=0, dtype=jnp.int32),
        places=jnp.argsort(order).reshape(tokens, per_token),
        present=present.reshape(tokens, per_token),
    )


def _gathered(
    w: Weight, columns: int, layout: FeedForwardLayout, schedule: ScheduleLike, dtype: jnp.dtype
) -> jax.Array:
    """A weight [E over x, F over yz], or its like with F first, with E gathered, and F in dimension
    `columns` as far as the layout gathers it."""
    over = [axis for axis in WEIGHT_AXES if axis not in layout.features(WEIGHT_AXES)]
    w = ax.all_gather(ax.all_gather(w, ("x",), 1 - columns, schedule), over, columns, schedule)
    return (w.dequantize() if isinstance(w, ce.Quantized) else w).astype(dtype)


def _multiplied(x: jax.Array, w: jax.Array, counts: jax.Array) -> jax.Array:
    """Rows of x [rows, n] times the expert of each of w [experts, n, m]; meaningless behind as many rows
    as `counts` has."""
    return lax.ragged_dot(x, w, counts)


def _sum_of_experts(rows: jax.Array, pairs: _Sorted, routing: Routing) -> jax.Array:
    """The weighted sum of each token's sorted rows; wide."""
    places = jnp.minimum(pairs.places, rows.shape[0] - 1)
    total = jnp.zeros((places.shape[0], rows.shape[1]), routing.weights.dtype)
    for i in range(places.shape[1]):
        own = _rows(rows, places[:, i]).astype(total.dtype)
        weighed = own * routing.weights[:, i, None]
        total = total + jnp.where(pairs.present[:, i, None], weighed, 0)
    return total
