"""The sizes to which the batch, the positions of a step and those of a cache are padded, so that a user
may ask for any: mesh axes divide them, and they fill the tiles of a TPU.

The decoder pads to these sizes, and the cost model prices them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from .. import tuning
from ..mesh.axis_collectives import size
from ..models.config import ModelConfig
from . import row_order as rows
from .attention_placement import place
from .mesh_fit import round_up
from .partitioning import Partitioning


def batch_multiple(config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]) -> int:
    """The smallest batch of a step and of its cache that the layouts can shard; they can shard its
    multiples.

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


def tiled_batch_multiple(
    batch: int, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> int:
    """A multiple of `batch_multiple` that also leaves every chip full tiles of tokens, if the batch is
    padded to it; arguments and errors as there."""
    layout = plan.feedforward
    ways = [size(axes, sizes) for axes in (layout.batch_axes, layout.inner_batch_axes)]
    # Tiles that are full between layers are full inside of a layer too.
    chips = next((n for n in ways if n > 1), 1) if layout.moves_tokens else 1
    tile = min(tuning.TOKENS_TILE, power_of_two(-(-batch // chips))) if chips > 1 else 1
    return math.lcm(batch_multiple(config, plan, sizes), chips * tile)


def padded_batch(
    batch: int, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> int:
    """The sequences of a step and of its cache; arguments and errors as `batch_multiple`."""
    return round_up(batch, tiled_batch_multiple(batch, config, plan, sizes))


def padded_length(
    new: int, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> int:
    """The positions of a step that reads `new` of each sequence; as `batch_multiple`."""
    layout = plan.feedforward
    where = place(config, layout, plan.attention, sizes)
    needed = rows.length_multiple(layout, where, sizes)
    chips = max(size(axes, sizes) for axes in (layout.position_axes, layout.inner_position_axes))
    return round_up(new, math.lcm(needed, chips * length_tile(new // chips, shared=chips > 1)))


def length_tile(new: int, *, shared: bool) -> int:
    """The number that `new` positions of a chip are padded to a multiple of: a power of two that adds no
    more than new / 8 positions, or new / 4 up to `tuning.STEP_TILE` where chips share a sequence."""
    most = tuning.STEP_TILE
    if not shared:
        return min(most, _power_within(new // 8))
    return max(min(2 * most, _power_within(new // 8)), min(most, _power_within(new // 4)))


def tiled_length(length: int, batch: int) -> int:
    """`length` rounded up, so that `batch` prompts of that length fill tiles of tokens."""
    tile = min(tuning.PROMPT_TILE, power_of_two(batch * length))
    return round_up(length, max(1, tile // batch))


def padded_capacity(positions: int) -> int:
    """The positions that a cache stores for each sequence, where `positions` are asked for."""
    return round_up(positions, tuning.CACHE_TILE)


def window_block(window: int) -> int:
    """The most queries of a prompt that are taken together where each sees a `window` of positions."""
    return max(tuning.WINDOW_BLOCK, window // tuning.WINDOW_BLOCKS)


def window_keys(window: int | None, new: int) -> int:
    """How many of `new` keys these queries get: their own and a window before; all without a window."""
    return new if window is None else min(new, window + window_block(window))


def _power_within(n: int) -> int:
    """The largest power of two that is at most n, or 1."""
    return 2 ** max(0, n.bit_length() - 1)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 2 ** (n - 1).bit_length()
