"""Seconds of lax's collectives before and after an einsum as XLA:TPU compiles them.

For some shapes the compiler replaces a gather or a scatter by an all-reduce; which ones was seen in its
schedules.
"""

from __future__ import annotations

from ..chips.tiles import MATRIX_TILE, TILE_ROWS
from ..ops.einsum_op import EinsumCollective
from .dots import pass_seconds
from .torus import all_gather_seconds, all_reduce_seconds, reduce_scatter_seconds
from .workload import Workload

# XLA:TPU scatters the last dimension in place where a row of a block has a multiple of these bytes
# (H11 in docs/compiler.md):
# seen in bf16 on v4, v5p, v5e and v6e, blocks of 128 to 5760 columns, and in f32 on v4.
ROW_BYTES = 512


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
    """Whether XLA:TPU compiles the all-gather of the last dimension to an all-reduce, which moves
    twice the bytes: if shards are fractions of tiles in both dimensions, or over three axes."""
    op = work.op
    rows = work.elements(op.lhs) / work.sizes[collective.label]
    splits_tiles = (
        rows < TILE_ROWS
        and work.sizes[collective.label] / work.devices(collective) % MATRIX_TILE != 0
    )
    lanes = work.chip.torus_dims > 0 and op.lhs[-1] == collective.label
    return lanes and (splits_tiles or len(collective.axes) > 2)


def _scatter_reduces(work: Workload, collective: EinsumCollective) -> bool:
    """Whether XLA:TPU compiles the reduce-scatter to an all-reduce and a slice."""
    moves_lanes = (
        _moves_lanes(work, collective)
        and len(collective.axes) == 1
        and not work.chip.transposes_scatter
    )
    return moves_lanes or scatter_splits_tiles(work, collective)


def scatter_splits_tiles(work: Workload, collective: EinsumCollective) -> bool:
    """Whether the blocks of a scatter of the first dimension are no multiple of tiles; XLA:TPU then
    makes an all-reduce of it."""
    out, n = work.op.out, work.devices(collective)
    leads = out[0] == collective.label and len(out) > 1 and n > 1 and work.chip.torus_dims > 0
    rows = work.elements(out[:-1]) // n
    return leads and rows % TILE_ROWS != 0


def _moves_lanes(work: Workload, collective: EinsumCollective) -> bool:
    """Whether XLA:TPU moves the blocks of a scatter of the last dimension, the lanes, apart first."""
    op, n = work.op, work.devices(collective)
    uneven = work.sizes[collective.label] / n * op.sum_wire.itemsize % ROW_BYTES != 0
    return work.chip.torus_dims > 0 and op.out[-1] == collective.label and n > 1 and uneven


def scatter_pass_seconds(
    work: Workload, collective: EinsumCollective, fraction: float = 1
) -> float:
    """Seconds of memory passes that slice, or move apart, the blocks of a scattered last dimension."""
    if not _moves_lanes(work, collective):
        return 0.0
    full_tiles = work.sizes[collective.label] / work.devices(collective) % MATRIX_TILE == 0
    aligned, unaligned, _ = work.chip.scatter_passes
    passes = aligned if full_tiles else unaligned
    seconds = pass_seconds(work, fraction * passes * work.full_bytes(collective))
    return seconds + work.chip.scatter_fill_seconds * work.rhs_count
