"""The feedforward that all tokens have beside their experts."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from ..mesh.axis_collectives import WEIGHT_AXES
from ..models.config import ModelConfig
from ..models.functions import hidden, scale_rows
from ..models.stacked_params import LayerWeights
from ..partitionings.feedforward_layout import FeedForwardLayout, Outgoing
from .layer_schedules import LayerSchedules
from .routing import Routing, inner_routing

# Names its ops where it is by itself.
SCOPE = "shared_feedforward"


def shared_in(
    c: jax.Array,
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedules: LayerSchedules,
    routing: Routing,
) -> jax.Array:
    """Its first half: hidden activations [rows, S over `layout.features`]; arguments as `projected`."""
    w_in = [weights[name] for name in config.shared_input_names]
    with jax.named_scope(SCOPE):
        inner = layout.project_in(c, w_in, [WEIGHT_AXES] * len(w_in), schedules.projections)
        return _hidden(inner, factor, config, layout, routing)


def shared_out(
    h: jax.Array, weights: LayerWeights, layout: FeedForwardLayout, schedules: LayerSchedules
) -> jax.Array:
    """Its second half, from the hidden activations of the first; result as `projected`."""
    with jax.named_scope(SCOPE):
        return layout.project_out([Outgoing(h, weights["w_shared_out"])], schedules.projections)


def shared_columns(
    inner: Sequence[jax.Array],
    factor: jax.Array | None,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    routing: Routing | None,
) -> Outgoing:
    """Its hidden activations, times the weight of each token, from the results of `project_in`."""
    return Outgoing(_hidden(inner, factor, config, layout, routing), weights["w_shared_out"])


def _hidden(
    inner: Sequence[jax.Array],
    factor: jax.Array | None,
    config: ModelConfig,
    layout: FeedForwardLayout,
    routing: Routing | None,
) -> jax.Array:
    h = hidden([scale_rows(y, factor) for y in inner], {}, config)
    weight = None if routing is None else inner_routing(routing, layout).shared
    return scale_rows(h, weight)
