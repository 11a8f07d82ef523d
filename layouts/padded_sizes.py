"""How large the batch, the positions of a step and those of a cache are made, so that any of them can
be asked for: what layouts shard must divide, and a TPU's tiles want to be full.

The decoder pads to these sizes, and the planner prices them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import rows
from .config import ModelConfig
from .items import Load
from .placement import place

if TYPE_CHECKING:
    from .partitioning import Partitioning

# Positions of a cache come in multiples of this, the rows of a TPU's tile of int8 and of two of
# bfloat16: where a head's last tile is not full, the TPU compiler copies a layer's cache in each step.
CACHE_TILE = 32
# Positions of a step of more than one come in multiples of this, the rows of a tile of bfloat16.
STEP_TILE = 16


def batch_multiple(config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]) -> int:
    """What the batch of a step and of its cache is a multiple of: all that shards it divides it.

    Args:
      config: the model.
      plan: the layouts.
      sizes: of the mesh axes x, y and z.

    Raises:
      ValueError: heads cannot be sharded over this mesh.
    """
    layout = plan.feedforward
    where = place(config, layout, plan.attention, sizes)
    return rows.batch_multiple(layout, where, sizes)


def padded_batch(
    batch: int, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> int:
    """The sequences of a step and of its cache; arguments and errors as `batch_multiple`."""
    return round_up(batch, batch_multiple(config, plan, sizes))


def padded_length(
    new: int, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> int:
    """The positions of a step that reads `new` of each sequence; as `batch_multiple`."""
    layout = plan.feedforward
    where = place(config, layout, plan.attention, sizes)
    needed = rows.length_multiple(layout, where, sizes)
    return round_up(new, needed if new == 1 else math.lcm(needed, STEP_TILE))


def padded_capacity(positions: int) -> int:
    """The positions that a cache stores for each sequence, where `positions` are asked for."""
    return round_up(positions, CACHE_TILE)


def padded_load(
    load: Load, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> Load:
    """What a step computes that is asked for `load`; as `batch_multiple`."""
    return dataclasses.replace(
        load,
        batch=padded_batch(load.batch, config, plan, sizes),
        new=padded_length(load.new, config, plan, sizes),
        past=padded_capacity(load.past) if load.past else 0,
    )


def round_up(n: int, multiple: int) -> int:
    """The next multiple from n on."""
    return -(-n // multiple) * multiple
