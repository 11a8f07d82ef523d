"""How a layer that attends is called by itself, inside a shard_map or on global arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from collective_einsum.chips import Chip, for_chip, traced_chip

from .layers.kv_cache import is_int8
from .layers.layer_checks import check_layer, check_past
from .layers.layer_context import Past, Step, make_step
from .layers.layer_schedules import LayerSchedules
from .mesh import axis_collectives as ax
from .mesh.axes import BATCH, AxesLike, MeshLike, naming
from .mesh.axis_collectives import ScheduleLike
from .mesh.shard_map_entry import layer_on_mesh, on_auto, weight_specs_of
from .models.config import ModelConfig
from .models.named_models import as_config
from .models.params import standing_for
from .models.stacked_params import LayerWeights
from .partitionings.attention_layouts import AttentionLayout
from .partitionings.attention_placement import place
from .partitionings.cache_specs import layer_specs
from .partitionings.feedforward_layout import FeedForwardLayout, boundary_spec
from .partitionings.named_layouts import as_attention, as_feedforward
from .partitionings.param_specs import block_specs
from .partitionings.row_order import check_rows, from_rows, to_rows
from .planning.schedule_layers import LayerSizes

Layer = Callable[[jax.Array, LayerWeights, Step, Past | None, Past | None], tuple[jax.Array, Past]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerCall:
    """A call of one layer that attends.

    Attributes:
      layer: of local shards, one of `layers.attention.attention`, `layers.block.parallel` and
        `layers.block.serial`.
      decide: the schedules of this layer from its sizes; one of `planning.schedule_layers`.
      names: of the weights that it uses, if the config has them.
      config, layout, attention, axes, schedule, chip: as `layouts.attention`.
    """

    layer: Layer
    decide: Callable[[LayerSizes, LayerWeights], LayerSchedules]
    names: Sequence[str]
    config: ModelConfig | str
    layout: FeedForwardLayout | str
    attention: AttentionLayout | str
    axes: AxesLike
    schedule: ScheduleLike
    chip: Chip | str | None

    def __call__(
        self,
        x: jax.Array,
        weights: LayerWeights,
        lengths: jax.Array | None,
        past: Past | None,
        prefix: Past | None,
        mesh: MeshLike | None,
    ) -> tuple[jax.Array, Past]:
        """The layer's results; arguments as `layouts.attention`.

        Raises:
          ValueError: see `layer_checks`.
        """
        config = as_config(self.config)
        layout, attention = as_feedforward(self.layout), as_attention(self.attention)
        check_layer(config, x, weights, self.names, is_global=mesh is not None)
        lengths = check_past(past, prefix, lengths, None if mesh is None else x.shape[0])
        local = functools.partial(self._local, config, layout, attention)
        with for_chip(self.chip), naming(self.axes):
            past = None if lengths is None else past
            rest = (weights, lengths, past, prefix)
            if mesh is None:
                return on_auto(local, lambda spec: (spec, P(*spec[:1])), x, *rest)
            sizes = ax.check_mesh(mesh)
            where = place(config, layout, attention, sizes)
            check_rows(x.shape[0], x.shape[1], layout, where, sizes)
            new = layer_specs((BATCH, *where.batch_axes), where.kv_axes, int8=is_int8(past))
            before = layer_specs((), where.kv_axes, int8=is_int8(prefix), batched=False)
            in_specs = (
                boundary_spec(layout),
                weight_specs_of(weights, block_specs(config, sizes)),
                lengths if lengths is None else P((BATCH,)),
                past and (new, new),
                prefix and (before, before),
            )
            return layer_on_mesh(mesh, local, x, rest, in_specs, lambda spec: (spec, (new, new)))

    def _local(
        self,
        config: ModelConfig,
        layout: FeedForwardLayout,
        attention: AttentionLayout,
        x: jax.Array,
        weights: LayerWeights,
        lengths: jax.Array | None,
        past: Past | None,
        prefix: Past | None,
    ) -> tuple[jax.Array, Past]:
        sizes = ax.local_sizes()
        where = place(config, layout, attention, sizes)
        weights = standing_for(weights, x.dtype)
        if lengths is None:
            lengths = jnp.zeros((x.shape[0] * ax.size(layout.batch_axes, sizes),), jnp.int32)
        case = LayerSizes(
            config=config,
            layout=layout,
            placement=where,
            schedule=self.schedule,
            batch=lengths.shape[0],
            new=x.shape[1] * ax.size(layout.position_axes, sizes),
            keys=None if past is None else past[0],
            activation_bytes=x.dtype.itemsize,
            sizes=sizes,
            chip=traced_chip(),
            window=config.kinds[0].window,
        )
        step = make_step(
            config=config,
            feedforward=layout,
            placement=where,
            schedules=self.decide(case, weights),
            lengths=lengths,
            new=case.new,
            prefix_length=0 if prefix is None else prefix[0].values.shape[-2],
            dtype=x.dtype,
            sizes=sizes,
        )
        y, new = self.layer(to_rows(x, layout), weights, step, past, prefix)
        return from_rows(y, x.shape[0], layout), new
