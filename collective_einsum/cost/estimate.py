"""The predicted cost of an einsum with its collectives under each schedule, from shapes alone."""

from __future__ import annotations

import dataclasses

from ..chips.tiles import MATRIX_TILE
from ..ops.schedule import Schedule
from .async_collectives import async_estimate
from .chunked import chunked_estimate
from .dots import dot_seconds, pass_seconds, work_dot
from .lax_collectives import (
    collective_seconds,
    gather_reduces,
    scatter_reduces,
    slice_seconds,
)
from .ring import ring_estimate
from .workload import Estimate, Workload

# Times that a TPU reads and writes an operand that an all-reduce gathers: it writes zeros first.
REDUCED_PASSES = 2.45
# How much longer dots of int8 weights take where what was gathered is laid out in columns: 1677 us for
# [8192, 4608] x [4608, 4608] on v4, of which 1480 in rows (libtpu 0.0.50.1).
BY_COLUMNS = 1.13


def estimate(work: Workload, schedule: Schedule) -> Estimate:
    """The predicted cost of an einsum under a schedule."""
    op = work.op
    ring = op.ring(schedule)
    if schedule.kind == "blocking" or (schedule.kind == "ring" and not (ring or op.reduce)):
        return _blocking_estimate(work, schedule)
    if schedule.kind == "chunked" and schedule.direction == "async":
        return async_estimate(work, schedule)
    if schedule.kind == "chunked" or ring is None:
        return chunked_estimate(work, schedule)
    return ring_estimate(work, ring, schedule)


def _blocking_estimate(work: Workload, schedule: Schedule) -> Estimate:
    """lax's collective before the einsum, the dot, and lax's collective after it."""
    op = work.op
    gathers = op.gather is not None and not gather_reduces(work, op.gather)
    dots = dot_seconds(work, gathered="by lax" if gathers else "")
    if gathers and _by_columns(work):
        dots *= BY_COLUMNS
    compute = dots
    before, after = collective_seconds(work)
    if op.scatter is not None:
        compute += slice_seconds(work, op.scatter)
    if op.gather is not None and gather_reduces(work, op.gather):
        compute += pass_seconds(work, REDUCED_PASSES * work.full_bytes(op.gather))
    return Estimate(
        schedule=schedule,
        compute=compute,
        communication=before + after,
        exposed=before + after - _overlapped_seconds(work, dots, before, after),
        memory=work.temporary_bytes,
    )


def _by_columns(work: Workload) -> bool:
    """Whether the dot of int8 weights reads what was gathered in columns, and reads rows faster."""
    gather = work.op.gather
    if gather is None or not work.chip.widens_in_rows or work.widened != work.op.rhs:
        return False
    if gather.label in work.op.out or work_dot(work, {}).rows < MATRIX_TILE:
        return False
    return work.gathers_parts_of_tiles


def _overlapped_seconds(work: Workload, dots: float, before: float, after: float) -> float:
    """Seconds of lax's collectives that compute overlaps, where the compiler makes them asynchronous.

    The scatter of a result overlaps the dots of the results after it, and the last collective overlaps
    `Workload.overlap_seconds`.

    Args:
      work: the einsum.
      dots: seconds of the dots of all results.
      before, after: from `collective_seconds`.
    """
    op, count = work.op, work.rhs_count
    if op.scatter is None:
        gathers = op.gather is not None and not op.reduce and not gather_reduces(work, op.gather)
        alone = gathers and "all_gather" in work.chip.asynchronous
        return min(before, work.overlap_seconds) if alone else 0.0
    kind = "all_reduce" if scatter_reduces(work, op.scatter) else "reduce_scatter"
    if kind not in work.chip.asynchronous or not count:
        return 0.0
    # The fixed costs of collectives that are under way at once overlap one another.
    _, last = collective_seconds(dataclasses.replace(work, rhs_count=1.0))
    earlier = min(after - last, dots * (count - 1) / count)
    return earlier + min(last, work.overlap_seconds)
