"""What a parallel block computes that does not depend on one of its collectives, and can overlap it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from collective_einsum.chips import Chip

from ..models.config import ModelConfig
from . import einsum_cost
from .item_seconds import attention_seconds, on_sparse_cores, transfer_seconds
from .layer_items import Attention, Einsum, Item, Transfer


class Independent(NamedTuple):
    """Seconds of a parallel block that collectives of other parts of it can overlap.

    Attributes:
      attention: scores, softmax and values, for the collectives of the feedforward; with attention's
        all-to-alls where SparseCores run lax's all-gathers and reduce-scatters beside them.
      inputs: matmuls of the feedforward's input matrices, for the last reduce-scatter of q, k and v that
        SparseCores run; 0 elsewhere.
      outputs: fixed cost that the all-gathers before the two output matrices overlap of each other where
        SparseCores run them; 0 elsewhere.
    """

    attention: float
    inputs: float = 0.0
    outputs: float = 0.0


def independent(
    config: ModelConfig, items: Iterable[Item], sizes: Mapping[str, int], chip: Chip
) -> Independent:
    """The independent work of a parallel block.

    Args:
      config: the model.
      items: of attention and of the feedforward's input matrices; others do not count.
      sizes: of the mesh axes.
      chip: every chip of the mesh, as its compiler serves the program.
    """
    attention = moving = into = 0.0
    for item in items:
        if isinstance(item, Attention):
            attention += attention_seconds(item, chip)
        elif isinstance(item, Transfer):
            moving += transfer_seconds(item, sizes, chip) if item.kind == "all-to-all" else 0.0
        elif is_input(config, item):
            into += einsum_cost.seconds(item, sizes, chip, "none").compute
    if not on_sparse_cores(chip):
        return Independent(attention)
    return Independent(attention + moving, into, chip.offload_seconds)


def is_input(config: ModelConfig, item: Item) -> bool:
    """Whether it is the einsum of the feedforward's input matrices, with q, k and v or by itself."""
    return isinstance(item, Einsum) and item.names[-1] in config.input_names
