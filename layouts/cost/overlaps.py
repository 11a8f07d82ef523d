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
      attention: scores, softmax and values, for the collectives of the feedforward.
      exchanges: attention's all-to-alls, for the same where SparseCores run lax's all-gathers and
        reduce-scatters beside them; 0 elsewhere.
      inputs: matmuls of the feedforward's input matrices, for the last reduce-scatter of q, k and v that
        SparseCores run; 0 elsewhere.
      outputs: fixed cost that the all-gathers before the two output matrices overlap of each other where
        SparseCores run them; 0 elsewhere.
      w_out: matmul of w_out, for the all-gather before w_o where SparseCores run it; 0 elsewhere.
    """

    attention: float
    exchanges: float = 0.0
    inputs: float = 0.0
    outputs: float = 0.0
    w_out: float = 0.0


def independent(
    config: ModelConfig, items: Iterable[Item], sizes: Mapping[str, int], chip: Chip
) -> Independent:
    """The independent work of a parallel block.

    Args:
      config: the model.
      items: of attention, of the feedforward's input matrices and of w_out; others do not count.
      sizes: of the mesh axes.
      chip: every chip of the mesh, as its compiler serves the program.
    """
    items = tuple(items)
    attention = sum(attention_seconds(i, chip) for i in items if isinstance(i, Attention))
    if not on_sparse_cores(chip):
        return Independent(attention)
    moved = [i for i in items if isinstance(i, Transfer) and i.kind == "all-to-all"]
    last = [i for i in items if isinstance(i, Einsum) and i.names[0] == "w_out"]

    def multiplying(einsums: Iterable[Einsum]) -> float:
        return sum(einsum_cost.seconds(einsum, sizes, chip, "none").compute for einsum in einsums)

    return Independent(
        attention=attention,
        exchanges=sum(transfer_seconds(transfer, sizes, chip) for transfer in moved),
        inputs=multiplying(input_einsums(config, items)),
        outputs=chip.offload_seconds,
        w_out=multiplying(last),
    )


def input_einsums(config: ModelConfig, items: Iterable[Item]) -> list[Einsum]:
    """The einsums of the feedforward's input matrices, with q, k and v or by themselves."""
    einsums = (item for item in items if isinstance(item, Einsum))
    return [einsum for einsum in einsums if einsum.names[-1] in config.input_names]
