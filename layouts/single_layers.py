"""The layers of a model, each by itself: inside a user's shard_map, or on global arrays of a mesh."""

from __future__ import annotations

import functools

import jax

from collective_einsum.chips import Chip, for_chip, traced_chip

from .layer_call import LayerCall
from .layers.attention import attention as attend
from .layers.block import parallel, serial
from .layers.feedforward import projected
from .layers.layer_checks import ATTENTION, FEEDFORWARD, PARALLEL, SERIAL, check_layer
from .layers.layer_context import Past
from .layers.routing import add_expert_bias, route
from .mesh import axis_collectives as ax
from .mesh.axes import AxesLike, MeshLike, naming
from .mesh.axis_collectives import ScheduleLike
from .mesh.shard_map_entry import layer_on_mesh, on_auto, weight_specs_of
from .models.config import ModelConfig
from .models.functions import add_bias
from .models.named_models import as_config
from .models.params import standing_for
from .models.stacked_params import LayerWeights
from .partitionings.attention_layouts import AttentionLayout
from .partitionings.feedforward_layout import FeedForwardLayout, boundary_shard, boundary_spec
from .partitionings.named_layouts import as_feedforward
from .partitionings.param_specs import WEIGHT_SPECS
from .planning.schedule_layers import (
    LayerSizes,
    attention_schedules,
    parallel_schedules,
    serial_schedules,
)


def feedforward(
    x: jax.Array,
    weights: LayerWeights,
    config: ModelConfig | str,
    layout: FeedForwardLayout | str,
    *,
    mesh: MeshLike | None = None,
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
        other than x, y and z: Explicit ones that shard the batch of x go on doing so, and Auto ones are
        left to the compiler. An x whose type is that of `activation_spec` is not resharded.
      axes: what the mesh calls x, y and z, if something else, and which others shard the batch; a
        `MeshAxes`.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`. Under "auto" a gated,
        token-sharded feedforward may be split into two fractions of d_ff, whose results add up in
        another order.
      chip: for which schedules are chosen, itself or its name; by default that of the mesh.

    Returns:
      As `x`.

    Raises:
      ValueError: while tracing, in words, for sizes that do not fit.
    """
    config, layout = as_config(config), as_feedforward(layout)
    check_layer(config, x, weights, FEEDFORWARD, is_global=mesh is not None)
    local = functools.partial(_feedforward, config=config, layout=layout, schedule=schedule)
    with naming(axes), for_chip(chip):
        if mesh is None:
            return on_auto(local, lambda spec: spec, x, weights)
        ax.check_mesh(mesh)
        specs = (boundary_spec(layout), weight_specs_of(weights, WEIGHT_SPECS))
        return layer_on_mesh(mesh, local, x, (weights,), specs, lambda spec: spec)


def _feedforward(
    x: jax.Array,
    weights: LayerWeights,
    config: ModelConfig,
    layout: FeedForwardLayout,
    schedule: ScheduleLike,
) -> jax.Array:
    """`feedforward` on local shards."""
    sizes = ax.local_sizes()
    weights = standing_for(weights, x.dtype)
    case = LayerSizes(
        config=config,
        layout=layout,
        placement=None,
        schedule=schedule,
        batch=x.shape[0] * ax.size(layout.batch_axes, sizes),
        new=x.shape[1] * ax.size(layout.position_axes, sizes),
        activation_bytes=x.dtype.itemsize,
        sizes=sizes,
        chip=traced_chip(),
    )
    schedules = serial_schedules(case, weights)
    c = ax.rows(x)
    routing = route(c, None, weights, config, layout)
    y = projected(c, None, weights, config, layout, schedules, routing)
    if routing is not None and "b_out" in weights:
        y = add_expert_bias(y, weights["b_out"], routing, config, layout)
    elif "b_out" in weights:
        y = add_bias(y, boundary_shard(layout, weights["b_out"], config.d_model))
    return y.reshape(x.shape)


def attention(
    x: jax.Array,
    weights: LayerWeights,
    config: ModelConfig | str,
    layout: FeedForwardLayout | str,
    attention_layout: AttentionLayout | str,
    *,
    lengths: jax.Array | None = None,
    past: Past | None = None,
    prefix: Past | None = None,
    mesh: MeshLike | None = None,
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
      lengths: [full batch] int32, the positions that precede x in `past`; None for none. Inside a
        shard_map the full batch is that over x, y and z, of which a data axis has a shard.
      past: keys and values of this layer, `Entries` of [B, K, S, D], sharded over batch and heads
        as `place` says; position p in place p, those from `lengths` on are not read.
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
    call = LayerCall(
        layer=attend,
        decide=attention_schedules,
        names=ATTENTION,
        config=config,
        layout=layout,
        attention=attention_layout,
        axes=axes,
        schedule=schedule,
        chip=chip,
    )
    return call(x, weights, lengths, past, prefix, mesh)


def parallel_block(
    x: jax.Array,
    weights: LayerWeights,
    config: ModelConfig | str,
    layout: FeedForwardLayout | str,
    attention_layout: AttentionLayout | str,
    *,
    lengths: jax.Array | None = None,
    past: Past | None = None,
    prefix: Past | None = None,
    mesh: MeshLike | None = None,
    axes: AxesLike = None,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> tuple[jax.Array, Past]:
    """x + attention(norm(x)) + feedforward(norm(x)), inside shard_map.

    One gather serves q, k, v and the feedforward's input matrices, and one reduce-scatter both
    output matrices (section 3.4 of "Efficiently Scaling Transformer Inference").

    Args:
      weights: of one layer; see `params.py`, and `layouts.param_specs` for how they are stored.
      x, config, layout, attention_layout, lengths, past, prefix, mesh, axes, schedule, chip: as
        `attention`.

    Returns:
      As `attention`.

    Raises:
      ValueError: while tracing, in words, for sizes that do not fit.
    """
    call = LayerCall(
        layer=parallel,
        decide=parallel_schedules,
        names=PARALLEL,
        config=config,
        layout=layout,
        attention=attention_layout,
        axes=axes,
        schedule=schedule,
        chip=chip,
    )
    return call(x, weights, lengths, past, prefix, mesh)


def serial_block(
    x: jax.Array,
    weights: LayerWeights,
    config: ModelConfig | str,
    layout: FeedForwardLayout | str,
    attention_layout: AttentionLayout | str,
    *,
    lengths: jax.Array | None = None,
    past: Past | None = None,
    prefix: Past | None = None,
    mesh: MeshLike | None = None,
    axes: AxesLike = None,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> tuple[jax.Array, Past]:
    """y = x + attention(norm(x)), and then y + feedforward(norm_ffn(y)); as `parallel_block`."""
    call = LayerCall(
        layer=serial,
        decide=serial_schedules,
        names=SERIAL,
        config=config,
        layout=layout,
        attention=attention_layout,
        axes=axes,
        schedule=schedule,
        chip=chip,
    )
    return call(x, weights, lengths, past, prefix, mesh)
