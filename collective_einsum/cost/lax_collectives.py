"""What lax's collectives cost as the TPU compiler makes them, and a hop of a ring.

The compiler's choices for these shapes were seen in its schedules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..chips.tiles import MATRIX_TILE, TILE_ROWS
from .dots import Problem, pass_seconds
from .torus import all_gather_seconds, reduce_scatter_seconds

if TYPE_CHECKING:
    from ..ops.einsum_op import End

# A TPU scatters the last dimension as it stands where a row of a block has a multiple of these bytes:
# seen in bf16 on v4, v5p, v5e and v6e, blocks of 128 to 5760 columns, and in f32 on v4.
ROW_BYTES = 512


def wraps(problem: Problem, axis: str) -> bool:
    return problem.chip.wraps(problem.axis_sizes[axis])


def hop_seconds(problem: Problem, axis: str | None, sent: float) -> float:
    """One hop of a ring, every device sending `sent` bytes one way; ends of a line are far apart,
    those of a ring through several axes (None) are not."""
    hops = 1 if axis is None or wraps(problem, axis) else problem.axis_sizes[axis] - 1
    return sent / problem.chip.link_bandwidth + hops * problem.chip.hop_seconds


def _scatter_blocking(problem: Problem, end: End) -> float:
    """lax.psum_scatter as compiled: of lanes, over one axis, mostly an all-reduce and a slice."""
    seconds = reduce_scatter_seconds(problem.chip, problem.sides(end.axes), problem.sent(end))
    of_lanes = _of_lanes(problem, end) and len(end.axes) == 1 and not problem.chip.turns_lanes
    return 2 * seconds if of_lanes or parts_tiles(problem, end) else seconds


def _gather_blocking(problem: Problem, end: End) -> float:
    """lax.all_gather as compiled; see `gather_reduces`."""
    seconds = all_gather_seconds(problem.chip, problem.sides(end.axes), problem.sent(end))
    return 2 * seconds if gather_reduces(problem, end) else seconds


def gather_reduces(problem: Problem, end: End) -> bool:
    """Whether a TPU gathers lanes by an all-reduce: parts of tiles both ways, or of three axes."""
    op = problem.op
    rows = problem.elements(op.lhs) / problem.sizes[end.label]
    parts = rows < TILE_ROWS and problem.sizes[end.label] / problem.n(end) % MATRIX_TILE != 0
    lanes = problem.chip.torus_dims > 0 and op.lhs[-1] == end.label
    return lanes and (parts or len(end.axes) > 2)


def parts_tiles(problem: Problem, end: End) -> bool:
    """Whether blocks of rows are no whole tiles: a TPU then makes an all-reduce of their scatter."""
    out, n = problem.op.out, problem.n(end)
    leads = out[0] == end.label and len(out) > 1 and n > 1 and problem.chip.torus_dims > 0
    rows = problem.elements(out[:-1]) // n
    return leads and rows % TILE_ROWS != 0


def _of_lanes(problem: Problem, end: End) -> bool:
    """Whether a TPU must move lanes of the result, its last dimension, to scatter them."""
    op, n = problem.op, problem.n(end)
    moved = problem.sizes[end.label] / n * op.sum_wire.itemsize % ROW_BYTES != 0
    return problem.chip.torus_dims > 0 and op.out[-1] == end.label and n > 1 and moved


def scatter_passes(problem: Problem, end: End, part: float = 1) -> float:
    """What a scatter of lanes by lax costs beside the links: blocks are cut out, or moved apart."""
    if not _of_lanes(problem, end):
        return 0.0
    whole_tiles = problem.sizes[end.label] / problem.n(end) % MATRIX_TILE == 0
    aligned, unaligned, _ = problem.chip.scatter_passes
    passes = aligned if whole_tiles else unaligned
    seconds = pass_seconds(problem, part * passes * problem.sent(end))
    return seconds + problem.chip.scatter_fill_seconds * problem.rights


def ends_seconds(problem: Problem) -> tuple[float, float]:
    """Seconds of the gather and of the scatter (or all-reduce) when nothing hides them."""
    op = problem.op
    gather = 0.0
    if op.gather is not None:
        gather = _gather_blocking(problem, op.gather)
    scatter = _scatter_blocking(problem, op.scatter) if op.scatter is not None else 0.0
    if op.reduce:
        whole = problem.elements(op.out) * op.sum_wire.itemsize * problem.rights
        scatter += 2 * all_gather_seconds(problem.chip, problem.sides(op.reduce), whole)
    return gather, scatter
