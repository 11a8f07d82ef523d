"""The partition specs of a KV cache, of a prefix and of one layer's keys and values."""

from __future__ import annotations

import dataclasses
from typing import Any

from jax.sharding import PartitionSpec as P

from ..mesh.axes import AxesLike, MeshLike, named, naming
from ..mesh.axis_collectives import Axes
from ..models.cache import Cache, Entries, Prefix
from ..models.config import ModelConfig
from ..models.named_models import as_config
from .attention_placement import Placement
from .partitioning import PlanLike, as_plan, placement


def cache_specs(
    config: ModelConfig | str,
    mesh: MeshLike,
    plan: PlanLike,
    cache: Cache,
    *,
    axes: AxesLike = None,
) -> Cache:
    """The partition spec of every array of a cache, as a cache.

    Args:
      config: the model.
      mesh: with axes x, y and z.
      plan: the layouts, as `as_plan` takes them; attention's decides.
      cache: arrays, or shapes.
      axes: the mesh axes that x, y and z stand for, if they are called otherwise; a `MeshAxes`.

    Raises:
      ValueError: the mesh has other axes, or the layouts cannot shard the model over it.
    """
    with naming(axes):
        return named(placed_specs(cache, placement(as_config(config), mesh, as_plan(plan))))


def placed_specs(cache: Cache, where: Placement) -> Cache:
    """The partition spec of every array of a cache, over the axes of a layout, from where attention
    happens."""
    own = _specs(
        None, where.batch_axes or None, where.kv_axes or None, int8=cache.k.scale is not None
    )
    prefix = None if cache.prefix is None else prefix_specs(cache.prefix, where.kv_axes)
    cache = cache.with_stores([(own, own)] * len(cache.stores))
    return dataclasses.replace(cache, lengths=P(), prefix=prefix)


def prefix_specs(prefix: Prefix, kv_axes: Axes) -> Prefix:
    """The partition spec of every array of a prefix, as a prefix."""
    own = _specs(None, kv_axes or None, int8=prefix.k.scale is not None)
    shorter = tuple((own, own) for _ in prefix.shorter)
    return dataclasses.replace(prefix, k=own, v=own, shorter=shorter)


def layer_specs(batch_axes: Axes, kv_axes: Axes, *, int8: bool, batched: bool = True) -> Entries:
    """The partition specs of one layer's keys or values: [batch, K, positions, D], or without a
    batch."""
    heads = kv_axes or None
    leading = (batch_axes or None, heads) if batched else (heads,)
    return _specs(*leading, int8=int8)


def _specs(*leading: Axes | None, int8: bool) -> Entries:
    """Partition specs in the places of the arrays of keys or values."""
    specs: Any = P(*leading, None, None), P(*leading, None) if int8 else None
    return Entries(*specs)
