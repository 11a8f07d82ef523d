"""The feedforward under any layout: two projections and what stands between them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from collective_einsum.chips import Chip, for_chip

from ..mesh import axis_collectives as ax
from ..mesh.axes import AxesLike, naming
from ..mesh.axis_collectives import WEIGHT_AXES, ScheduleLike
from ..mesh.shard_map_entry import layer_on_mesh, on_auto, weight_specs_of
from ..models.config import ModelConfig, as_config
from ..models.functions import BIASES, add_bias, hidden, scale_rows
from ..models.params import standing_for
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    Outgoing,
    boundary_shard,
    boundary_spec,
    feature_bias,
    whole_rows,
)
from ..partitionings.named_layouts import as_feedforward
from ..partitionings.param_specs import WEIGHT_SPECS
from .layer_checks import FEEDFORWARD, check_layer
from .streamed_feedforward import stream, stream_schedule
from .two_part_feedforward import Between, in_parts, pays


def feedforward(
    x: jax.Array,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    *,
    mesh: Any = None,
    axes: AxesLike = None,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> jax.Array:
    """The feedforward of a block, without its norm, on local shards inside shard_map.

    Args:
      x: [B_W, L, E over the rest], sharded by `activation_spec(layout, axes)`.
      weights: of one layer, stored as `WEIGHT_SPECS` says: "w_in", "w_out", "w_gate" if gated, and
        their biases if the config has any; each an array or a Quantized, whichever the others are.
      config: activation and gate.
      layout: WeightStationary1D(), WeightStationary2D() or WeightGathered(...).
      mesh: given outside of a shard_map, where x and weights are global arrays. It may have axes
        beside x, y and z: Explicit ones that shard the batch of x go on doing so, and Auto ones are
        left to the compiler. An x whose type is that of `activation_spec` is not resharded.
      axes: what the mesh calls x, y and z, if something else, and which others shard the batch; a
        `MeshAxes`.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`. Under "auto" a gated
        feedforward whose rows are cut may come in two parts of F, which adds up in another order.
      chip: for which schedules are chosen, itself or its name; by default that of the mesh.

    Returns:
      As `x`.

    Raises:
      ValueError: while tracing, in words, for sizes that do not fit.
    """
    config, layout = as_config(config), as_feedforward(layout)
    check_layer(config, x, weights, FEEDFORWARD, whole=mesh is not None)
    local = functools.partial(_local, config=config, layout=layout, schedule=schedule)
    with naming(axes), for_chip(chip):
        if mesh is None:
            return on_auto(local, lambda spec: spec, x, weights)
        ax.check_mesh(mesh)
        specs = (boundary_spec(layout), weight_specs_of(weights, WEIGHT_SPECS))
        return layer_on_mesh(mesh, local, x, (weights,), specs, lambda spec: spec)


def _local(
    x: jax.Array,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> jax.Array:
    ax.local_sizes()
    weights = standing_for(weights, x.dtype)
    y = projected(ax.rows(x), None, weights, config, layout, schedule)
    if "b_out" in weights:
        y = add_bias(y, boundary_shard(layout, weights["b_out"], config.d_model))
    return y.reshape(x.shape)


def projected(
    c: jax.Array,
    factor: jax.Array | None,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> jax.Array:
    """A feedforward by itself, without the bias of its result.

    Args:
      c: [rows, E over the rest].
      factor: [rows, 1], what the columns of the input matrices are to be multiplied by; or None.
      weights, config, layout, schedule: as `feedforward`.

    Returns:
      As `c`.
    """
    w_in = [weights[name] for name in config.input_names]
    if pays(c.shape[0], weights, config, layout, schedule):
        between = _between(factor, weights, config, layout, schedule)
        return in_parts(c, w_in, weights["w_out"], between, ("x",), ax.live(WEIGHT_AXES))
    how = stream_schedule(c.shape[0], weights, config, layout, schedule, ["w_out"])
    if how is not None:
        c = whole_rows(c, layout, config.d_model, schedule)
        return layout.project_out(stream(c, factor, weights, config, layout, [], how), schedule)
    inner = layout.project_in(c, w_in, [WEIGHT_AXES] * len(w_in), schedule)
    h = columns_out(inner, factor, weights, config, layout, schedule)
    return layout.project_out([h], schedule)


def columns_out(
    inner: Sequence[jax.Array],
    factor: jax.Array | None,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> Outgoing:
    """What `project_out` takes of what `project_in` has made of the input matrices."""
    h = _between(factor, weights, config, layout, schedule)(inner, 0)
    return Outgoing(h, weights["w_out"])


def _between(
    factor: jax.Array | None,
    weights: Mapping[str, Any],
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> Between:
    """What stands between the matrices, of some columns from the one that is given on."""
    biases = {
        name: feature_bias(layout, weights[name], WEIGHT_AXES, schedule)
        for name in BIASES
        if name in weights
    }

    def between(inner: Sequence[jax.Array], lo: int) -> jax.Array:
        own = {name: each[lo : lo + inner[0].shape[1]] for name, each in biases.items()}
        return hidden([scale_rows(y, factor) for y in inner], own, config)

    return between
