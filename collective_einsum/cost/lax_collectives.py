"""Seconds of lax's collectives before and after an einsum as XLA:TPU compiles them.

For some shapes the compiler replaces a gather or a scatter by an all-reduce: `lowering_rules`.
"""

from __future__ import annotations

from ..chips.observations import PassKind
from ..chips.tiles import TILE_ROWS
from ..ops.einsum_op import EinsumCollective
from .lowering_rules import Block, lowering_rule
from .torus import all_gather_seconds, all_reduce_seconds, reduce_scatter_seconds
from .workload import Workload


def collective_seconds(work: Workload) -> tuple[float, float]:
    """Seconds of the collective before the einsum and of the one after it, lax's own, if neither
    overlaps with anything; 0.0 for one that is not there."""
    op, chip = work.op, work.chip
    before = after = 0.0
    if op.gather is not None:
        seconds = all_reduce_seconds if gather_reduces(work, op.gather) else all_gather_seconds
        before = seconds(chip, work.slice_sides(op.gather.axes), work.full_bytes(op.gather))
    if op.scatter is not None:
        reduces = scatter_reduces(work, op.scatter)
        seconds = all_reduce_seconds if reduces else reduce_scatter_seconds
        after = seconds(chip, work.slice_sides(op.scatter.axes), work.full_bytes(op.scatter))
    if op.reduce:
        after += all_reduce_seconds(chip, work.slice_sides(op.reduce), work.sum_bytes)
    return before, after


def gather_reduces(work: Workload, collective: EinsumCollective) -> bool:
    """Whether XLA:TPU compiles the all-gather to an all-reduce, which moves twice the bytes."""
    block = _block(work, collective, work.op.lhs)
    return work.devices(collective) > 1 and (
        lowering_rule(work.chip, "all_gather", block) is not None
    )


def scatter_reduces(work: Workload, collective: EinsumCollective) -> bool:
    """Whether XLA:TPU compiles the reduce-scatter to an all-reduce and a slice."""
    block = _block(work, collective, work.op.out)
    return work.devices(collective) > 1 and (
        lowering_rule(work.chip, "reduce_scatter", block) is not None
    )


def _block(work: Workload, collective: EinsumCollective, labels: str) -> Block:
    """What a device has of an array of these labels before it is gathered, or after it is scattered."""
    length = work.sizes[collective.label] // work.devices(collective)
    is_last = labels[-1] == collective.label
    others = int(work.elements(labels[:-1]))
    if not is_last:
        others = others // work.sizes[collective.label] * length if others else 0
    gathers = collective is work.op.gather
    return Block(
        rows=others,
        columns=length if is_last else work.sizes[labels[-1]],
        itemsize=(work.lhs_dtype if gathers else work.op.sum_wire).itemsize,
        along="columns" if is_last else "rows" if labels[0] == collective.label else "inner",
        sides=tuple(side for side in work.slice_sides(collective.axes) if side > 1),
    )


def scatter_splits_tiles(work: Workload, collective: EinsumCollective) -> bool:
    """Whether the blocks of a scatter of the first dimension are no multiple of tiles; the library then
    sends rows of lanes."""
    out, n = work.op.out, work.devices(collective)
    leads = out[0] == collective.label and len(out) > 1 and n > 1 and work.chip.torus_dims > 0
    rows = work.elements(out[:-1]) // n
    return leads and rows % TILE_ROWS != 0


def move_seconds(work: Workload, collective: EinsumCollective, kind: PassKind) -> float:
    """Seconds of a memory pass that moves blocks of a result apart before they are scattered; none are
    moved that are of the first dimension, or which the compiler lays out so."""
    block = _block(work, collective, work.op.out).laid_out(work.chip)
    if block.along == "rows":
        return 0.0
    return work.chip.pass_seconds(kind, work.full_bytes(collective), work.rhs_count)


def slice_seconds(work: Workload, collective: EinsumCollective, fraction: float = 1) -> float:
    """Seconds of the memory pass that takes a device's block of an all-reduce that stands for a scatter
    of a fraction of the results."""
    if not scatter_reduces(work, collective):
        return 0.0
    return work.chip.pass_seconds("slice", fraction * work.full_bytes(collective), work.rhs_count)
