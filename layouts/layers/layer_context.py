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
from ..models.config import AttentionKind, ModelConfig
from ..models.functions import rotary_tables, rotate, wide
from ..models.rotary import Rotary
from ..partitionings.attention_placement import Placement
from ..partitionings.feedforward_layout import FeedForwardLayout
from ..partitionings.row_order import check_rows
from .layer_schedules import LayerSchedules

# Keys and values of one layer.
Past = tuple[Entries, Entries]
# Sines and cosines.
Tables = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The values that all layers of one step share.

    Attributes:
      config, feedforward, placement: the model and its layouts.
      schedules: of a layer's collectives.
      lengths: [B of this chip in attention], positions already in the cache.
      tables: for each kind of attention, sines and cosines of the rotary embedding for the new
        positions, each [B of this chip in attention, T, D]; None for a kind without one.
      query_tables: the same for the positions of a chip's queries.
      new: T, the number of new positions.
      queries: how many of them are those of a chip's queries.
      prefix_length: positions of the shared prefix that count; more may be stored.
      place: of this layer among those that repeat.
      rolls: whether this layer's cache has position p in place p modulo its number of positions.
      counted: [rows of this chip between layers], whether each is a token, rather than padding of a
        prompt; None for one token of each sequence, and for a config without experts.
    """

    config: ModelConfig
    feedforward: FeedForwardLayout
    placement: Placement
    schedules: LayerSchedules
    lengths: jax.Array
    tables: tuple[Tables | None, ...]
    query_tables: tuple[Tables | None, ...]
    new: int
    queries: int
    prefix_length: int = 0
    place: int = 0
    rolls: bool = False
    counted: jax.Array | None = None

    @property
    def kind(self) -> AttentionKind:
        """The attention of this layer."""
        return self.config.kinds[self.place]

    def rotated(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries and keys [B, T, heads, D] of a chip, rotated as this layer does."""
        rotary = self.config.rotary_of(self.kind)
        return (
            rotate(q, self.query_tables[self.place], rotary),
            rotate(k, self.tables[self.place], rotary),
        )

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
    axes = feedforward.inner_position_axes
    positions = prefix_length + own[:, None] + jnp.arange(new, dtype=jnp.int32)
    tables: dict[Rotary | None, Tables | None] = {None: None}
    query_tables = dict(tables)
    rotaries = [config.rotary_of(kind) for kind in config.kinds]
    for rotary in rotaries:
        if rotary is not None and rotary not in tables:
            made = rotary_tables(positions, rotary, config.d_head, wide(dtype))
            # The TPU compiler would compute them again in each layer.
            sin, cos = lax.optimization_barrier(made)
            tables[rotary] = sin, cos
            query_tables[rotary] = ax.own_block(sin, axes, 1), ax.own_block(cos, axes, 1)
    return Step(
        config=config,
        feedforward=feedforward,
        placement=placement,
        schedules=schedules,
        lengths=own,
        tables=tuple(tables[rotary] for rotary in rotaries),
        query_tables=tuple(query_tables[rotary] for rotary in rotaries),
        new=new,
        queries=new // ax.size(axes, sizes),
        prefix_length=prefix_length,
    )
