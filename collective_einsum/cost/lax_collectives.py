"""Seconds of lax's collectives before and after an einsum as XLA:TPU compiles them.

For some shapes the compiler replaces a gather or a scatter by an all-reduce: `lowering_rules`.
"""

from __future__ import annotations

from ..chips.tiles import MATRIX_TILE, TILE_ROWS
from ..ops.einsum_op import EinsumCollective
from .dots import pass_seconds
from .lowering_rules import ROW_BYTES, Block, lowering_rule
from .torus import all_gather_seconds, all_reduce_seconds, reduce_scatter_seconds
from .workload import Workload


def collective_seconds(work: Workload) -> tuple[float, float]:
    """Seconds of the collective before the einsum and of the one after it, lax's own, if neither
    overlaps with anything; 0.0 for one that is not there."""
    op, chip = work.op, work.chip
    before = after = 0.0
    if op.gather is not None:
        seconds = all_reduce_seconds if gather_reduces(work, op.gather) else all_gather_seconds
        before = seconds(chip, work.sides(op.gather.axes), work.full_bytes(op.gather))
    if op.scatter is not None:
        reduces = _scatter_reduces(work, op.scatter)
        seconds = all_reduce_seconds if reduces else reduce_scatter_seconds
        after = seconds(chip, work.sides(op.scatter.axes), work.full_bytes(op.scatter))
    if op.reduce:
        after += all_reduce_seconds(chip, work.sides(op.reduce), work.sum_bytes)
    return before, after


def gather_reduces(work: Workload, collective: EinsumCollective) -> bool:
    """Whether XLA:TPU compiles the all-gather to an all-reduce, which moves twice the bytes."""
    block = _block(work, collective, work.op.lhs)
    return work.devices(collective) > 1 and (
        lowering_rule(work.chip, "all_gather", block) is not None
    )


def _scatter_reduces(work: Workload, collective: EinsumCollective) -> bool:
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
        axes=sum(side > 1 for side in work.sides(collective.axes)),
    )


def scatter_splits_tiles(work: Workload, collective: EinsumCollective) -> bool:
    """Whether the blocks of a scatter of the first dimension are no multiple of tiles; the library then
    sends rows of lanes."""
    out, n = work.op.out, work.devices(collective)
    leads = out[0] == collective.label and len(out) > 1 and n > 1 and work.chip.torus_dims > 0
    rows = work.elements(out[:-1]) // n
    return leads and rows % TILE_ROWS != 0


def _moves_lanes(work: Workload, collective: EinsumCollective) -> bool:
    """Whether XLA:TPU moves the blocks of a scatter of the last dimension, the lanes, apart first."""
    op, n = work.op, work.devices(collective)
    uneven = work.sizes[collective.label] / n * op.sum_wire.itemsize % ROW_BYTES != 0
    return work.chip.torus_dims > 0 and op.out[-1] == collective.label and n > 1 and uneven


def sliced_in_place(work: Workload, collective: EinsumCollective) -> bool:
    """Whether the all-reduce that stands for a scatter is sliced with no pass of its own: so it is where
    a block has parts of tiles. On v4, [64, 16 x 288] takes 1.4 us beside its dot (libtpu 0.0.50.1)."""
    return not _has_full_tiles(work, collective) and _scatter_reduces(work, collective)


def _has_full_tiles(work: Workload, collective: EinsumCollective) -> bool:
    return work.sizes[collective.label] / work.devices(collective) % MATRIX_TILE == 0


def scatter_pass_seconds(
    work: Workload, collective: EinsumCollective, fraction: float = 1
) -> float:
    """Seconds of memory passes that slice, or move apart, the blocks of a scattered last dimension."""
    if not _moves_lanes(work, collective):
        return 0.0
    aligned, unaligned, _ = work.chip.scatter_passes
    passes = aligned if _has_full_tiles(work, collective) else unaligned
    seconds = pass_seconds(work, fraction * passes * work.full_bytes(collective))
    return seconds + work.chip.scatter_fill_seconds * work.rhs_count
