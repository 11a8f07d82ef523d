"""The work of a step's layers, whose attention may have several windows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from collective_einsum.chips import Chip

from ..models.config import AttentionKind, ModelConfig
from ..partitionings.partitioning import Partitioning
from .layer_items import Item, Load
from .layer_work import layer_work


class Layers(NamedTuple):
    """Layers that are alike.

    Attributes:
      count: how many.
      items: what one does.
    """

    count: int
    items: tuple[Item, ...]


def layer_kinds(
    config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int], load: Load, chip: Chip
) -> list[Layers]:
    """For each window of the layers' attention, its layers; arguments and errors as `layer_work`."""
    counts: dict[int | None, tuple[AttentionKind, int]] = {}
    for layer in range(config.layers):
        kind = config.kinds[layer % len(config.kinds)]
        counts[kind.window] = kind, counts.get(kind.window, (kind, 0))[1] + 1
    return [
        Layers(count, layer_work(config, plan, sizes, load, chip, kind))
        for kind, count in counts.values()
    ]
