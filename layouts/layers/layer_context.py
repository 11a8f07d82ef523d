"""What the layers of a step share, and how a layer that attends is called by itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from ..mesh import axis_collectives as ax
from ..mesh.axes import BATCH, AxesLike, naming
from ..mesh.axis_collectives import ScheduleLike
from ..mesh.shard_map_entry import layer_on_mesh, on_auto, weight_specs_of
from ..models.cache import Entries
from ..models.config import ModelConfig, as_config
from ..models.functions import rotary_tables, wide
from ..models.params import standing_for
from ..partitionings.attention_layouts import AttentionLayout
from ..partitionings.attention_placement import Placement, place
from ..partitionings.cache_specs import layer_specs
from ..partitionings.feedforward_layout import FeedForwardLayout, boundary_spec
from ..partitionings.named_layouts import as_attention, as_feedforward
from ..partitionings.param_specs import block_specs
from ..partitionings.row_order import check_rows, from_rows, to_rows
from .kv_cache import is_int8
from .layer_checks import check_layer, check_past

Past = tuple[Entries, Entries]
Layer = Callable[..., tuple[jax.Array, Past]]


@dataclasses.dataclass(frozen=True)
class Step:
    """What all layers of one step share.

    Attributes:
      config, feedforward, placement, schedule: how things are laid out.
      lengths: [B of this chip in attention], positions already in the cache.
      tables: of the rotary embedding, for the new positions; None without one.
      query_tables: the same for the positions of a chip's queries.
      new: T, how many positions are new.
      queries: how many of them are those of a chip's queries.
      prefix_length: positions of the shared prefix, of which more may be stored.
    """

    config: ModelConfig
    feedforward: FeedForwardLayout
    placement: Placement
    schedule: ScheduleLike
    lengths: jax.Array
    tables: tuple[jax.Array, jax.Array] | None
    query_tables: tuple[jax.Array, jax.Array] | None
    new: int
    queries: int
    prefix_length: int = 0

    @property
    def first_query(self) -> jax.Array | int:
        """The first of a chip's queries, of the new positions."""
        axes = ax.live(self.feedforward.inner_position_axes)
        return ax.axis_index(axes) * self.queries if axes else 0


def make_step(
    config: ModelConfig,
    feedforward: FeedForwardLayout,
    placement: Placement,
    schedule: ScheduleLike,
    lengths: jax.Array,
    new: int,
    prefix_length: int,
    dtype: Any,
) -> Step:
    """A `Step` for `new` positions after `lengths` [whole batch], after a shared prefix.

    Raises:
      ValueError: the layouts cannot shard so many sequences or positions.
    """
    check_rows(lengths.shape[0], new, feedforward, placement, ax.local_sizes())
    own = ax.own_block(lengths, placement.batch_axes, 0)
    tables = query_tables = None
    cut = feedforward.inner_position_axes
    if config.rotary is not None:
        positions = prefix_length + own[:, None] + jnp.arange(new, dtype=jnp.int32)
        tables = rotary_tables(positions, config.rotary, config.d_head, wide(dtype))
        # The TPU compiler would compute them again in each layer.
        sin, cos = lax.optimization_barrier(tables)
        tables, query_tables = (sin, cos), (ax.own_block(sin, cut, 1), ax.own_block(cos, cut, 1))
    queries = new // ax.size(cut)
    return Step(
        config,
        feedforward,
        placement,
        schedule,
        own,
        tables,
        query_tables,
        new,
        queries,
        prefix_length,
    )


@dataclasses.dataclass(frozen=True)
class LayerCall:
    """How a layer that attends is called by itself, inside a shard_map or on global arrays."""

    config: ModelConfig
    layout: FeedForwardLayout
    attention: AttentionLayout
    axes: AxesLike
    schedule: ScheduleLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", as_config(self.config))
        object.__setattr__(self, "layout", as_feedforward(self.layout))
        object.__setattr__(self, "attention", as_attention(self.attention))

    def check(
        self,
        x: Any,
        weights: Any,
        names: Sequence[str],
        lengths: Any,
        past: Any,
        prefix: Any,
        mesh: Any,
    ) -> Any:
        """Refuses what is no layer's, see `layer_checks`; returns lengths as an array."""
        whole = mesh is not None
        check_layer(self.config, x, weights, names, whole=whole)
        return check_past(past, prefix, lengths, x.shape[0] if whole else None)

    def __call__(
        self,
        layer: Layer,
        x: jax.Array,
        weights: Mapping[str, Any],
        lengths: jax.Array | None,
        past: Past | None,
        prefix: Past | None,
        mesh: Any,
    ) -> tuple[jax.Array, Past]:
        """The layer's results; arguments as `attention`."""
        with naming(self.axes):
            local = functools.partial(self._local, layer)
            past = None if lengths is None else past
            if mesh is None:
                rest = (weights, lengths, past, prefix)
                return on_auto(local, lambda spec: (spec, P(*spec[:1])), x, *rest)
            sizes = ax.check_mesh(mesh)
            where = place(self.config, self.layout, self.attention, sizes)
            check_rows(x.shape[0], x.shape[1], self.layout, where, sizes)
            new = layer_specs((BATCH, *where.batch_axes), where.kv_axes, int8=is_int8(past))
            before = layer_specs((), where.kv_axes, int8=is_int8(prefix), batched=False)
            in_specs = (
                boundary_spec(self.layout),
                weight_specs_of(weights, block_specs(self.config, sizes)),
                lengths if lengths is None else P((BATCH,)),
                past and (new, new),
                prefix and (before, before),
            )
            rest = (weights, lengths, past, prefix)
            return layer_on_mesh(mesh, local, x, rest, in_specs, lambda spec: (spec, (new, new)))

    def _local(
        self,
        layer: Layer,
        x: jax.Array,
        weights: Mapping[str, Any],
        lengths: jax.Array | None,
        past: Past | None,
        prefix: Past | None,
    ) -> tuple[jax.Array, Past]:
        where = place(self.config, self.layout, self.attention, ax.local_sizes())
        weights = standing_for(weights, x.dtype)
        if lengths is None:
            lengths = jnp.zeros((x.shape[0] * ax.size(self.layout.batch_axes),), jnp.int32)
        before = 0 if prefix is None else prefix[0].values.shape[-2]
        length = x.shape[1] * ax.size(self.layout.position_axes)
        step = make_step(
            self.config, self.layout, where, self.schedule, lengths, length, before, x.dtype
        )
        y, new = layer(to_rows(x, self.layout), weights, step, past, prefix)
        return from_rows(y, x.shape[0], self.layout), new
