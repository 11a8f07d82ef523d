"""Seconds that a mixture of experts saves by sorting tokens by expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from collective_einsum.chips import Chip

from .. import tuning
from ..mesh.axis_collectives import WEIGHT_AXES, size
from ..models.config import ModelConfig
from ..partitionings.expert_columns import expert_columns
from ..partitionings.feedforward_layout import FeedForwardLayout
from ..partitionings.weight_gathered import WeightGathered
from .item_seconds import transfer_seconds
from .layer_items import ACTIVATION_BYTES, Transfer, transfer


class Grouped(NamedTuple):
    """What a chip does that multiplies each expert with its own tokens only.

    Attributes:
      rows: of the matmuls, tiles that are not full included; of experts that are equally liked.
      sorted_rows: of which there is room.
      experts: of the chip.
      width: columns of each of them.
      copied: matrices that are laid out by expert.
    """

    rows: int
    sorted_rows: int
    experts: int
    width: int
    copied: int

    def passed_bytes(self, config: ModelConfig) -> float:
        """Bytes of memory passes: weights are laid out by expert, and tokens are sorted and put back."""
        weights = 2 * self.copied * self.experts * self.width
        return ACTIVATION_BYTES * config.d_model * (weights + 5 * self.sorted_rows)


def grouped(
    config: ModelConfig,
    layout: FeedForwardLayout,
    sizes: Mapping[str, int],
    tokens: int,
    element_bytes: int,
    chip: Chip,
) -> Grouped | None:
    """The work of sorted tokens, where a serial block sorts them; None where it does not.

    It does not where E of stationary weights is sharded over x, a chip has two parts of one expert, or
    it would take longer.

    Args:
      config: the model.
      layout: of the feedforward.
      sizes: of the mesh axes.
      tokens: of a chip, in the feedforward.
      element_bytes: of the weights.
      chip: every chip of the mesh.
    """
    experts = config.experts
    if experts is None or config.block != "serial":
        return None
    gathered = isinstance(layout, WeightGathered)
    # Sums over E_x of sorted tokens would move several times the bytes of the tokens.
    if not gathered and sizes["x"] > 1:
        return None
    columns = expert_columns(config, layout, sizes)
    if not columns.are_apart:
        return None
    count = columns.owners.shape[-1]
    chosen = -(-tokens * experts.per_token * count // experts.count)
    work = Grouped(
        rows=chosen + count * tuning.GROUPED_TILE // 2,
        sorted_rows=tokens * min(experts.per_token, count),
        experts=count,
        width=columns.width,
        # w_out is as it was gathered, or else a slice of a stack that is copied.
        copied=len(config.input_names) + (size(layout.batch_axes if gathered else (), sizes) == 1),
    )
    moved = gathers(config, layout, sizes, element_bytes)
    brought = sum(transfer_seconds(each, sizes, chip) for each in moved)
    return work if _saving(config, work, tokens, brought, chip) > 0 else None


def gathers(
    config: ModelConfig, layout: FeedForwardLayout, sizes: Mapping[str, int], element_bytes: int
) -> Iterator[Transfer]:
    """The all-gathers of a layer's experts, which no dot of sorted tokens overlaps; none of those that
    are stationary."""
    if not isinstance(layout, WeightGathered):
        return
    stored = config.d_model * config.hidden_columns / size(WEIGHT_AXES, sizes)
    columns = tuple(axis for axis in WEIGHT_AXES if axis in layout.axes)
    for _ in (*config.input_names, "w_out"):
        for axes, elements in ((("x",), stored), (columns, stored * size(columns, sizes))):
            yield from transfer("experts", "all-gather", axes, elements, element_bytes, sizes)


def _saving(config: ModelConfig, work: Grouped, tokens: int, brought: float, chip: Chip) -> float:
    """Seconds that the matmuls of all experts with all tokens take longer, which overlap the all-gathers
    of the weights, `brought` seconds."""
    flops = 2 * config.d_model * work.width * (len(config.input_names) + 1)
    alone = work.rows * flops / (chip.bf16_flops * tuning.GROUPED_DOT_SHARE)
    alone += work.passed_bytes(config) / chip.vector_bandwidth + brought
    return max(brought, tokens * work.experts * flops / chip.bf16_flops) - alone
