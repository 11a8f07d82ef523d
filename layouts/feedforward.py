"""The feedforward under any layout: two projections and what stands between them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from . import axes as ax
from .axes import WEIGHT_AXES, ScheduleLike
from .config import ModelConfig
from .doors import on_mesh, weight_specs_of
from .functions import feedforward_hidden, wide
from .projections import (
    FeedForwardLayout,
    Outgoing,
    activation_spec,
    boundary_shard,
    feature_bias,
)

# Both matrices of a feedforward, and its biases, by the name that they have in a block.
WEIGHT_SPECS = {
    "w_in": P("x", WEIGHT_AXES),
    "w_gate": P("x", WEIGHT_AXES),
    "w_out": P(WEIGHT_AXES, "x"),
    "b_in": P(WEIGHT_AXES),
    "b_gate": P(WEIGHT_AXES),
    "b_out": P(),
}


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """y + bias, rounded once; y if there is none."""
    if bias is None:
        return y
    return (y.astype(wide(y.dtype)) + bias.astype(wide(y.dtype))).astype(y.dtype)


def feedforward(
    x: jax.Array,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    *,
    mesh: Any = None,
    schedule: ScheduleLike = "auto",
) -> jax.Array:
    """The feedforward of a block, without its norm, on local shards inside shard_map.

    Args:
      x: [B_W, L, E over the rest], sharded by `activation_spec(layout)`.
      weights: of one layer, stored as `WEIGHT_SPECS` says: "w_in", "w_out", "w_gate" if gated, and
        their biases if the config has any; each an array or a Quantized.
      config: activation and gate.
      layout: WeightStationary1D(), WeightStationary2D() or WeightGathered(...).
      mesh: given outside of a shard_map, where x and weights are global arrays.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`.

    Returns:
      As `x`.

    Raises:
      ValueError: while tracing, in words, for sizes that do not fit.
    """
    if mesh is not None:
        ax.check_mesh(mesh)
        spec = activation_spec(layout)
        specs = (spec, weight_specs_of(weights, WEIGHT_SPECS))
        local = functools.partial(feedforward, config=config, layout=layout, schedule=schedule)
        return on_mesh(mesh, local, specs, spec)(x, weights)
    ax.local_sizes()
    names = ["w_in", "w_gate"] if config.gated else ["w_in"]
    inner = layout.project_in(
        ax.rows(x), [weights[name] for name in names], [WEIGHT_AXES] * len(names), schedule
    )
    h = hidden(inner, weights, config, layout, schedule)
    y = layout.project_out([Outgoing(h, weights["w_out"])], schedule)
    y = add_bias(
        y, _optional(weights, "b_out", lambda b: boundary_shard(layout, b, config.d_model))
    )
    return y.reshape(x.shape)


def hidden(
    inner: Sequence[jax.Array],
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> jax.Array:
    """What stands between the two matmuls, from the columns of w_in and, if gated, of w_gate."""
    biased = [
        add_bias(
            y, _optional(weights, name, lambda b: feature_bias(layout, b, WEIGHT_AXES, schedule))
        )
        for y, name in zip(inner, ("b_in", "b_gate"), strict=False)
    ]
    return feedforward_hidden(biased[0], biased[1] if config.gated else None, config.activation)


def _optional(weights: Mapping[str, Any], name: str, use: Any) -> Any:
    return use(weights[name]) if name in weights else None
