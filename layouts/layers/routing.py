"""Which experts each token has, and what weighs their results.

The experts of a token are chosen on one chip, from the sum of all chips' parts of its logits, and sent
to the others: chips that each chose for themselves could differ by a rounding, and an expert would be
counted twice or not at all.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..mesh import axis_collectives as ax
from ..models.config import ModelConfig
from ..models.experts import Experts
from ..models.functions import add_bias, wide
from ..models.stacked_params import LayerWeights
from ..partitionings.expert_columns import expert_columns
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    boundary_axes,
    boundary_shard,
    boundary_slice,
    inner_token_axes,
    token_axes,
)

# lax's own collectives, which round nothing: few bytes, for which no computation waits.
_SCHEDULE = "blocking"


class Routing(NamedTuple):
    """The experts of each token.

    Attributes:
      experts: [rows, experts per token] integers; as many as there are experts for none.
      weights: [rows, experts per token], of their results; wide.
      shared: [rows, 1], the weight of the result of the feedforward that all tokens have; wide. None
        for 1, and where there is no such feedforward.
    """

    experts: jax.Array
    weights: jax.Array
    shared: jax.Array | None = None


def route(
    c: jax.Array,
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    counted: jax.Array | None = None,
) -> Routing | None:
    """The experts of a chip's tokens between layers; None for a config without experts.

    Padding has none, a number that no expert has: all of it would have the same ones.

    Args:
      c: [rows, E over `boundary_axes`], as the feedforward's input matrices take it.
      factor: [rows, 1], by which the logits are multiplied; None for 1.
      weights: of one layer, "w_router" and perhaps "b_router" and "w_shared_router" among them.
      config: how many experts there are.
      layout: of the feedforward.
      counted: [rows], which of them are tokens, rather than padding; None if all are.
    """
    if config.experts is None:
        return None
    rows, split, copies = c.shape[0], boundary_axes(layout), layout.repeated_axes
    with jax.named_scope("route"):
        matrix = boundary_slice(layout, _router(weights), config.d_model)
        logits = ax.local_einsum("me,ef->mf", c, matrix)
        more = -rows % ax.size((*split, *copies))
        logits = jnp.pad(logits, ((0, more), (0, 0)))
        logits = ax.reduce_scatter_alone(logits, split, 0, _SCHEDULE)
        logits = ax.own_block(logits, copies, 0)
        if factor is not None:
            factor = jnp.pad(factor, ((0, more), (0, 0)))
            logits = logits * ax.own_block(factor, (*split, *copies), 0)
        count = config.experts.count
        chosen = choose(logits[:, :count], weights.get("b_router"), config.experts)
        if config.experts.shared_router:
            chosen = chosen._replace(shared=jax.nn.sigmoid(logits[:, count:]))
        gathered = _gathered(_gathered(chosen, copies), split)
    routing = jax.tree.map(lambda x: x[:rows], gathered)
    if counted is not None:
        routing = routing._replace(experts=jnp.where(counted[:, None], routing.experts, count))
    return routing


def _router(weights: LayerWeights) -> jax.Array:
    """The columns of logits, those of the experts first: one reduction sums both."""
    if "w_shared_router" not in weights:
        return weights["w_router"]
    return jnp.concatenate([weights["w_router"], weights["w_shared_router"]], axis=1)


def choose(logits: jax.Array, bias: jax.Array | None, experts: Experts) -> Routing:
    """The experts with the largest of the logits [rows, experts], and their probabilities."""
    logits = add_bias(logits, bias)
    top, index = lax.top_k(logits, experts.per_token)
    # Softmax over the chosen is softmax over all, divided by its sum over the chosen.
    among = top if experts.probabilities == "chosen" else logits
    most = jnp.max(logits, axis=-1, keepdims=True)
    total = jnp.sum(jnp.exp(among - most), axis=-1, keepdims=True)
    return Routing(index.astype(jnp.int32), jnp.exp(top - most) / total)


def inner_routing(routing: Routing, layout: FeedForwardLayout) -> Routing:
    """`route` of a chip's tokens after `project_in`."""
    between, inside = token_axes(layout), inner_token_axes(layout)
    if between == inside:
        return routing
    return jax.tree.map(lambda x: ax.own_block(x, inside, 0), _gathered(routing, between))


def weigh_columns(
    h: jax.Array, routing: Routing, config: ModelConfig, layout: FeedForwardLayout
) -> jax.Array:
    """Hidden activations of all experts, each times the weight of its expert: 0 for those that a token
    does not have.

    Args:
      h: [rows, columns over `layout.features(("y", "z"))`].
      routing: of these rows.
      config: how many columns there are.
      layout: of the feedforward.
    """
    owners = own_experts(config, layout)
    rows, n = h.shape
    theirs = routing.experts[:, :, None] == owners
    weights = jnp.sum(jnp.where(theirs, routing.weights[:, :, None], 0), axis=1)[:, :, None]
    blocks = h.reshape(rows, owners.shape[0], -1).astype(weights.dtype)
    # What a token does not have may be infinite.
    return jnp.where(weights == 0, 0, blocks * weights).astype(h.dtype).reshape(rows, n)


def own_experts(config: ModelConfig, layout: FeedForwardLayout) -> jax.Array:
    """The expert of each block of this chip's columns after `project_in`, [blocks] integers."""
    columns = expert_columns(config, layout, ax.local_sizes())
    owners = jnp.asarray(columns.owners, jnp.int32)
    for axis in columns.axes:
        owners = lax.dynamic_index_in_dim(owners, ax.axis_index(axis), 0, keepdims=False)
    return owners


def add_expert_bias(
    y: jax.Array,
    bias: jax.Array,
    routing: Routing,
    config: ModelConfig,
    layout: FeedForwardLayout,
) -> jax.Array:
    """y [rows, E over `boundary_axes`] plus the biases [experts, E] of each token's experts, weighed."""
    assert config.experts is not None
    own = boundary_shard(layout, bias, config.d_model).astype(wide(y.dtype))
    ids = jnp.arange(config.experts.count, dtype=jnp.int32)
    theirs = routing.experts[:, :, None] == ids
    weights = jnp.sum(jnp.where(theirs, routing.weights[:, :, None], 0), axis=1)
    added = jnp.matmul(weights, own, precision=lax.Precision.HIGHEST)
    return (y.astype(added.dtype) + added).astype(y.dtype)


def _gathered(routing: Routing, axes: tuple[str, ...]) -> Routing:
    """All rows of those over `axes`, in one all-gather."""
    k = routing.experts.shape[1]
    numbers = routing.experts.astype(routing.weights.dtype)
    shared = [] if routing.shared is None else [routing.shared]
    packed = jnp.concatenate([numbers, routing.weights, *shared], axis=1)
    packed = ax.all_gather(packed, axes, 0, _SCHEDULE)
    numbers, weights, rest = jnp.split(packed, [k, 2 * k], axis=1)
    return Routing(numbers.astype(jnp.int32), weights, rest if shared else None)
