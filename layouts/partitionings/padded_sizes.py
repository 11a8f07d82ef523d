"""How large the batch, the positions of a step and those of a cache are made, so that any of them can
be asked for: what layouts shard must divide, and a TPU's tiles want to be full.

The decoder pads to these sizes, and the planner prices them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..mesh.axis_collectives import size
from ..models.config import ModelConfig
from . import row_order as rows
from .attention_placement import place
from .mesh_fit import round_up
from .partitioning import Partitioning

# Positions of a cache come in multiples of this, the rows of a TPU's tile of int8 and of two of
# bfloat16: where a head's last tile is not full, the TPU compiler copies a layer's cache in each step.
CACHE_TILE = 32
# Positions of a step come in multiples of this, the rows of a tile; fewer, in powers of two that add no
# more than an eighth. Of PaLM 540B on 64 v4 and 64 sequences, a layer takes 1945 us for 31 positions and
# 1735 for 32, 2293 for 33 and 1925 for 36, but 957 for 13 and 1038 for 16. Where chips share positions,
# each chip's do, and fewer add no more than a quarter: of one sequence and 16 such chips, a layer takes
# 640 us for 576 positions, 634 for 640, 812 for 704, 744 for 768, 1207 for 1088 and 1087 for 1152; many
# come in halves that do, 2142 for 2176 and 1961 for 2304.
STEP_TILE = 8
# Rows of a chip, where collectives cut them, come in multiples of this; fewer, in powers of two. Of the
# same model, a layer of 7, 9 or 12 rows takes 313, 375 and 379 us, where one of 8 takes 275 and one of
# 16 takes 348; one that is cut over x alone takes 481 us for 68 rows and 419 for 72.
ROWS_TILE = 8
# Rows (sequences times positions) that layouts for prompts are chosen for come in multiples of this, the
# lanes of a TPU's tile; fewer, in powers of two. The model knows full tiles only: PaLM 540B on 64 v4
# would read 129 tokens in layouts that take 376 us a layer, of which it predicts 323, where those for
# 256 take 326.
PROMPT_TILE = 128


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


def tiled_batch_multiple(
    batch: int, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> int:
    """The same, such that no collective cuts `batch` rows between tiles."""
    layout = plan.feedforward
    cut = [size(axes, sizes) for axes in (layout.batch_axes, layout.inner_batch_axes)]
    # Where rows are cut between layers, their tiles are those of the pieces inside of one too.
    chips = next((n for n in cut if n > 1), 1) if layout.cuts_rows else 1
    tile = min(ROWS_TILE, _power(-(-batch // chips))) if chips > 1 else 1
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
    # The greatest powers of two that are no more than an eighth of a chip's positions, or a quarter.
    tile = min(STEP_TILE if chips == 1 else 2 * STEP_TILE, _power_within(new // chips // 8))
    if chips > 1:
        tile = max(tile, min(STEP_TILE, _power_within(new // chips // 4)))
    return round_up(new, math.lcm(needed, chips * tile))


def tiled_length(length: int, batch: int) -> int:
    """The length of prompts that fill tiles of rows, if `batch` of them share these."""
    rows = min(PROMPT_TILE, _power(batch * length))
    return round_up(length, max(1, rows // batch))


def padded_capacity(positions: int) -> int:
    """The positions that a cache stores for each sequence, where `positions` are asked for."""
    return round_up(positions, CACHE_TILE)


def _power_within(n: int) -> int:
    """The greatest power of two that is no more than n, or 1."""
    return 2 ** max(0, n.bit_length() - 1)


def _power(n: int) -> int:
    """The next power of two from n on."""
    return 2 ** (n - 1).bit_length()
