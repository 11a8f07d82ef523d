"""The feedforward under any layout: two projections and what stands between them."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, ScheduleLike, Weight
from ..models.config import ModelConfig
from ..models.functions import BIASES, hidden, scale_rows
from ..models.stacked_params import LayerWeights
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    Outgoing,
    feature_bias,
    gather_features,
    total,
)
from .dispatched_experts import dispatched_experts
from .grouped_experts import grouped_experts
from .int8_activations import incoming, outgoing
from .layer_schedules import LayerSchedules
from .routing import Routing, inner_routing, weigh_columns
from .shared_feedforward import shared_columns, shared_in, shared_out
from .streamed_feedforward import stream
from .two_part_feedforward import Between, split_feedforward


def projected(
    c: jax.Array,
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
    routing: Routing | None,
) -> jax.Array:
    """A feedforward by itself, without the bias of its result.

    Args:
      c: [rows, E over the rest].
      factor: [rows, 1], by which the results of the input matrices are multiplied; None for 1.
      weights: of one layer, local shards, as they are stored.
      config: activation and gate.
      layout: of the projections.
      schedules: of this layer.
      routing: the experts of a chip's tokens between layers; None for a config without experts.

    Returns:
      As `c`.
    """
    rooms = schedules.rooms
    if rooms is not None and routing is not None:
        if rooms.dispatches:
            return dispatched_experts(c, weights, config, layout, schedules, routing, rooms)
        given = (weights, config, layout, schedules, routing)
        made = grouped_experts(c, factor, *given, rooms.expert)
        if not config.shared_width:
            return made
        h = shared_in(c, factor, *given)
        return total([made, shared_out(h, weights, layout, schedules)])
    if schedules.splits_d_ff:
        between = _between(factor, weights, config, layout, schedules.given, routing)
        w_in = [weights[name] for name in config.input_names]
        return split_feedforward(c, w_in, weights["w_out"], between, ("x",), ax.live(WEIGHT_AXES))
    schedule = schedules.projections
    if schedules.weight_ring is not None:
        c = gather_features(c, layout, config.d_model, schedules.given)
        narrow = incoming(c, config, layout, schedule)
        terms = stream(narrow, factor, weights, config, layout, [], schedules.weight_ring)
        return layout.project_out(outgoing(terms, config, layout, schedule), schedule)
    w_in = input_matrices(weights, config)
    narrow = incoming(c, config, layout, schedule)
    inner = layout.project_in(narrow, w_in, [WEIGHT_AXES] * len(w_in), schedule)
    terms = columns_out(inner, factor, weights, config, layout, schedules.given, routing)
    return layout.project_out(outgoing(terms, config, layout, schedule), schedule)


def input_matrices(weights: LayerWeights, config: ModelConfig) -> list[Weight]:
    """The matrices that `project_in` takes: those of the feedforward, or of experts and of the
    feedforward that all tokens have beside them."""
    return [weights[name] for name in (*config.input_names, *config.shared_input_names)]


def columns_out(
    inner: Sequence[jax.Array],
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
    routing: Routing | None,
) -> list[Outgoing]:
    """The hidden activations for `project_out`, from the results of `project_in` of `input_matrices`."""
    own = len(config.input_names)
    h = _between(factor, weights, config, layout, schedule, routing)(inner[:own], 0)
    terms = [Outgoing(h, weights["w_out"])]
    if config.shared_width:
        terms.append(shared_columns(inner[own:], factor, weights, config, layout, routing))
    return terms


def _between(
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
    routing: Routing | None,
) -> Between:
    """The nonlinearity between the matrices, for a slice of the features that starts at `lo`."""
    biases = {
        name: feature_bias(layout, weights[name], WEIGHT_AXES, schedule)
        for name in BIASES
        if name in weights
    }

    def between(inner: Sequence[jax.Array], lo: int) -> jax.Array:
        own = {name: bias[lo : lo + inner[0].shape[1]] for name, bias in biases.items()}
        h = hidden([scale_rows(y, factor) for y in inner], own, config)
        if routing is None:
            return h
        return weigh_columns(h, inner_routing(routing, layout), config, layout)

    return between
