"""The feedforward in which each expert is multiplied with its own tokens only.

A chip has tokens, and experts or columns of them: in a weight-gathered layout its own tokens and experts
that are gathered; in a weight-stationary one its own experts and all tokens, which are gathered, or, see
`dispatched_experts`, those that have its experts. No token is dropped, however many have one expert.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, Weight
from ..models.config import ModelConfig
from ..models.functions import BIASES, hidden, scale_rows
from ..models.stacked_params import InStack, LayerWeights, one_of
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    boundary_axes,
    feature_bias,
    gather_features,
    token_axes,
)
from .layer_schedules import LayerSchedules
from .routing import Routing, inner_routing, own_experts
from .sorted_rows import in_rounds, sort_rows, take, with_a_gradient

# Names the ops of this way to compute.
SCOPE = "sorted_by_expert"


class Experts(NamedTuple):
    """A chip's experts, those of their columns that it has.

    Attributes:
      inputs: the input matrices, each [E, experts * width].
      output: [experts * width, E].
      biases: by name, each [experts, width].
    """

    inputs: list[Weight | InStack]
    output: Weight | InStack
    biases: dict[str, jax.Array]


def grouped_experts(
    c: jax.Array,
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
    routing: Routing,
    room: int,
) -> jax.Array:
    """A feedforward by itself, without the bias of its result; arguments and result as `projected`.

    Each of a chip's experts is one block of its columns, see `ExpertColumns.are_apart`, and takes `room`
    tokens a round.
    """
    owners, schedule = own_experts(config, layout), schedules.given
    shared = token_axes(layout) if layout.moves_tokens else ()
    c = gather_features(c, layout, config.d_model, schedule)
    c = ax.all_gather(c, shared, 0, schedule)
    routing = inner_routing(routing, layout)
    experts = held_experts(weights, config, layout, schedules, owners.shape[0])
    with jax.named_scope(SCOPE):
        summed = with_a_gradient(functools.partial(_summed, config=config), room, c.shape[0])
        y = summed(c, factor, routing, experts, owners).astype(c.dtype)
    if layout.repeated_axes:
        return ax.all_reduce(y, layout.repeated_axes, schedule)
    if shared:
        return ax.reduce_scatter_alone(y, shared, 0, schedule)
    return ax.reduce_scatter_alone(y, boundary_axes(layout), 1, schedule)


def held_experts(
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
    count: int,
) -> Experts:
    """A chip's experts, so many, gathered as far as the layout gathers them."""
    gathered = functools.partial(_gathered, layout=layout, schedules=schedules)
    biases = {
        name: feature_bias(layout, weights[name], WEIGHT_AXES, schedules.given).reshape(count, -1)
        for name in BIASES
        if name in weights
    }
    inputs = [gathered(weights[name], 1) for name in config.input_names]
    return Experts(inputs, gathered(weights["w_out"], 0), biases)


def _gathered(
    w: Weight | InStack, columns: int, layout: FeedForwardLayout, schedules: LayerSchedules
) -> Weight | InStack:
    """A weight [E over x, F over yz], or its like with F first, with E gathered, and F in dimension
    `columns` as far as the layout gathers it."""
    if isinstance(w, InStack):
        return w
    schedule = schedules.projections
    over = [axis for axis in WEIGHT_AXES if axis not in layout.features(WEIGHT_AXES)]
    return ax.all_gather(ax.all_gather(w, ("x",), 1 - columns, schedule), over, columns, schedule)


def _summed(
    room: int,
    c: jax.Array,
    factor: jax.Array | None,
    routing: Routing,
    experts: Experts,
    owners: jax.Array,
    *,
    config: ModelConfig,
) -> jax.Array:
    """The weighed sum of the results of a token's experts that a chip has: [tokens, E], wide."""
    (tokens, per_token), count = routing.experts.shape, owners.shape[0]
    matches = routing.experts.reshape(-1, 1) == owners
    absent = ~jnp.any(matches, axis=1)
    slots = jnp.where(absent, count, jnp.argmax(matches, axis=1)).astype(jnp.int32)
    pairs = sort_rows(slots, count)

    def one(index: jax.Array | int, total: jax.Array) -> jax.Array:
        taken = pairs.taken(room, index) // per_token
        factors = None if factor is None else take(factor, taken)
        rows = multiplied(take(c, taken), factors, experts, count, config)
        return total + weighed_sum(rows, *pairs.found(room, index), routing.weights)

    total = jnp.zeros((tokens, config.d_model), routing.weights.dtype)
    # A token has an expert once.
    return in_rounds(1 if room >= tokens else pairs.rounds(room), one, total)


def multiplied(
    x: jax.Array,
    factors: jax.Array | None,
    experts: Experts,
    count: int,
    config: ModelConfig,
) -> jax.Array:
    """Rows [experts * room, E], those of one expert after another, each through the feedforward of its
    expert, as far as the chip has its columns: of the same shape."""
    experts, x = _sliced_after(x, experts)
    x, factors = _blocks(x, count), None if factors is None else _blocks(factors, count)

    def one(index: jax.Array, x: jax.Array, factors: jax.Array | None) -> jax.Array:
        inner = [
            ax.local_einsum("me,ef->mf", x, one_of(w, 1, index, count)) for w in experts.inputs
        ]
        biases = {
            name: lax.dynamic_index_in_dim(bias, index, keepdims=False)
            for name, bias in experts.biases.items()
        }
        h = hidden([scale_rows(y.astype(x.dtype), factors) for y in inner], biases, config)
        return ax.local_einsum("mf,fe->me", h, one_of(experts.output, 0, index, count)).astype(
            x.dtype
        )

    # A loop, since slices with known starts would be copied together: H3 in docs/compiler.md.
    first = jnp.int32(0)
    _, rows = lax.scan(lambda i, given: (i + 1, one(i, *given)), first, (x, factors))
    return rows.reshape(-1, rows.shape[-1])


def _sliced_after(x: jax.Array, experts: Experts) -> tuple[Experts, jax.Array]:
    """Both as they are, but slices of stacks wait for x: the compiler would take the slice of a single
    expert out of the loop over rounds, and copy it."""
    matrices = [*experts.inputs, experts.output]
    layers = [w.layer if isinstance(w, InStack) else None for w in matrices]
    layers, x = lax.optimization_barrier((layers, x))
    *inputs, output = (
        w._replace(layer=layer) if isinstance(w, InStack) else w
        for w, layer in zip(matrices, layers, strict=True)
    )
    return Experts(inputs, output, experts.biases), x


def _blocks(x: jax.Array, count: int) -> jax.Array:
    return x.reshape(count, -1, x.shape[-1])


def weighed_sum(
    rows: jax.Array, places: jax.Array, present: jax.Array, weights: jax.Array
) -> jax.Array:
    """For each token the weighed sum of its rows.

    Args:
      rows: [any, E].
      places: [tokens * rows per token], where the rows of one token after another are among these.
      present: of the same shape, whether they are there.
      weights: [tokens, rows per token]; wide.

    Returns:
      [tokens, E], of the dtype of `weights`.
    """
    places, present = places.reshape(weights.shape), present.reshape(weights.shape)
    total = jnp.zeros((weights.shape[0], rows.shape[1]), weights.dtype)
    for i in range(weights.shape[1]):
        own = take(rows, places[:, i]).astype(weights.dtype)
        total = total + jnp.where(present[:, i, None], own * weights[:, i, None], 0)
    return total
