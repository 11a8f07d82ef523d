"""The values that the layers of a step share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import ScheduleLike
from ..models.cache import Entries
from ..models.config import ModelConfig
from ..models.functions import rotary_tables, wide
from ..partitionings.attention_placement import Placement
from ..partitionings.feedforward_layout import FeedForwardLayout
from ..partitionings.row_order import check_rows
from .layer_schedules import LayerSchedules

# Keys and values of one layer.
Past = tuple[Entries, Entries]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The values that all layers of one step share.

    Attributes:
      config, feedforward, placement: the model and its layouts.
      schedules: of a layer's collectives.
      lengths: [B of this chip in attention], positions already in the cache.
      tables: sines and cosines of the rotary embedding for the new positions, each
        [B of this chip in attention, T, D]; None for a model without one.
      query_tables: the same for the positions of a chip's queries.
      new: T, the number of new positions.
      queries: how many of them are those of a chip's queries.
      prefix_length: positions of the shared prefix that count; more may be stored.
    """

    config: ModelConfig
    feedforward: FeedForwardLayout
    placement: Placement
    schedules: LayerSchedules
    lengths: jax.Array
    tables: tuple[jax.Array, jax.Array] | None
    query_tables: tuple[jax.Array, jax.Array] | None
    new: int
    queries: int
    prefix_length: int = 0

    @property
    def schedule(self) -> ScheduleLike:
        """The schedule that the caller gave."""
        return self.schedules.given

    @property
    def first_query(self) -> jax.Array | int:
        """The place of a chip's first query among the new positions."""
        axes = ax.live(self.feedforward.inner_position_axes)
        return ax.axis_index(axes) * self.queries if axes else 0


def make_step(
    *,
    config: ModelConfig,
    feedforward: FeedForwardLayout,
    placement: Placement,
    schedules: LayerSchedules,
    lengths: jax.Array,
    new: int,
    prefix_length: int,
    dtype: DTypeLike,
    sizes: Mapping[str, int],
) -> Step:
    """A `Step` for `new` positions after `lengths` [full batch], after a shared prefix.

    Raises:
      ValueError: the layouts cannot shard so many sequences or positions over axes of these `sizes`.
    """
    check_rows(lengths.shape[0], new, feedforward, placement, sizes)
    own = ax.own_block(lengths, placement.batch_axes, 0)
    tables = query_tables = None
    axes = feedforward.inner_position_axes
    if config.rotary is not None:
        positions = prefix_length + own[:, None] + jnp.arange(new, dtype=jnp.int32)
        tables = rotary_tables(positions, config.rotary, config.d_head, wide(dtype))
        # The TPU compiler would compute them again in each layer.
        sin, cos = lax.optimization_barrier(tables)
        tables, query_tables = (sin, cos), (ax.own_block(sin, axes, 1), ax.own_block(cos, axes, 1))
    return Step(
        config=config,
        feedforward=feedforward,
        placement=placement,
        schedules=schedules,
        lengths=own,
        tables=tables,
        query_tables=query_tables,
        new=new,
        queries=new // ax.size(axes, sizes),
        prefix_length=prefix_length,
    )
