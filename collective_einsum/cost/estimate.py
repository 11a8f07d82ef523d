"""What an operation costs on a chip under each schedule: seconds and bytes, from shapes alone.

Predicted, as what it is made of: see `cost_dots`, `cost_lax`, `cost_ring` and `cost_direct`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..ops.schedule import Schedule
from .async_collectives import direct_estimate
from .dots import Estimate, Problem, dots_of_chunks, pass_seconds, whole_bytes, whole_dot
from .lax_collectives import (
    ends_seconds,
    gather_reduces,
    parts_tiles,
    scatter_passes,
)
from .ring import ring_estimate
from .torus import all_gather_seconds, all_to_all_seconds, reduce_scatter_seconds

if TYPE_CHECKING:
    from ..ops.einsum_op import End, Operation

# Times that a TPU reads and writes an operand that an all-reduce gathers: zeros are written first.
REDUCED_PASSES = 2.45
# Devices up to which a block for each of them is sent on its way at once.
STRAIGHT = 16


def estimate(problem: Problem, schedule: Schedule) -> Estimate:
    """The cost of `problem` under `schedule`."""
    op = problem.op
    turning = op.gather if op.scatter is None or schedule.end == "gather" else op.scatter
    turning = turning or op.scatter
    if schedule.kind == "blocking" or (schedule.kind == "ring" and not (turning or op.reduce)):
        gather, scatter = ends_seconds(problem)
        sent, compute = gather + scatter, whole_dot(problem)
        if op.scatter is not None:
            compute += scatter_passes(problem, op.scatter)
        if op.gather is not None and gather_reduces(problem, op.gather):
            compute += pass_seconds(problem, REDUCED_PASSES * problem.sent(op.gather))
        return Estimate(schedule, compute, sent, sent, whole_bytes(problem))
    if schedule.kind == "chunked" or turning is None:
        return _chunked(problem, schedule)
    return ring_estimate(problem, turning, schedule)


def _chunked(problem: Problem, schedule: Schedule) -> Estimate:
    """Assembling and slicing in passes; what the first and last chunks send has nothing beside it."""
    op, count = problem.op, len(schedule.shares)
    if schedule.direction == "async":
        return direct_estimate(problem, schedule)
    if count == 1 and op.scatter is not None:
        return _whole(problem, op.scatter, schedule)
    gather, scatter = (
        all_gather_seconds(problem.chip, problem.sides(end.axes), problem.sent(end))
        if end is not None
        else 0.0
        for end in (op.gather, op.scatter)
    )
    scatter += ends_seconds(problem)[1] if op.reduce else 0.0
    passes = 0.0
    if op.gather is not None:
        passes += 2 * problem.sent(op.gather)
    if op.scatter is not None:
        passes += 3 * problem.sent(op.scatter)
    if op.reduce:
        passes += 5 * problem.elements(op.out) * op.sum_wire.itemsize * problem.rights
    dots = sum(dots_of_chunks(problem, schedule))
    if count > 1:
        # Chunks land in the result, and a dot hides one hop of each collective.
        passes += 2 * problem.elements(op.out) * op.dtype.itemsize * problem.rights
        passes += _scaled_bytes(problem)
    hops = max((sum(problem.axis_sizes[a] // 2 for a in axes) for axes in _all_axes(op)), default=1)
    hidden = min(gather + scatter, dots) * (count - 1) / count / max(1, hops)
    exposed = gather + scatter - hidden
    compute = dots + pass_seconds(problem, passes)
    return Estimate(schedule, compute, gather + scatter, exposed, whole_bytes(problem))


def _whole(problem: Problem, end: End, schedule: Schedule) -> Estimate:
    """One chunk: lax's collectives, but results before the last are scattered beside dots."""
    op, n = problem.op, problem.n(end)
    gather, _ = ends_seconds(problem)
    each = problem.sent(end) / problem.rights
    scatter = reduce_scatter_seconds(problem.chip, problem.sides(end.axes), each)
    # The blocks of a dimension that is not the first must be moved apart, by the dot and after it;
    # so must parts of tiles.
    passes, apart = 0.0, 0.0
    if op.out[0] != end.label:
        passes = problem.chip.scatter_passes[2] * each * problem.rights
        apart = problem.chip.scatter_fill_seconds
    elif parts_tiles(problem, end):
        passes = 2 * each * problem.rights
        apart = problem.chip.scatter_fill_seconds * (problem.rights - 1)
    dots, straight, exposed = whole_dot(problem), 0.0, scatter
    if op.form == "each" and n <= STRAIGHT:
        # Every block takes the links on its way: more, the longer the axes.
        straight = all_to_all_seconds(problem.chip, problem.sides(end.axes), each)
        late = max(0.0, straight - dots / problem.rights)
        exposed += (problem.rights - 1) * late
        passes += (problem.rights - 1) * each * (2 * (n - 1) / n + 1)
    else:
        exposed *= problem.rights
    busy = gather + scatter + (problem.rights - 1) * max(straight, scatter)
    compute = dots + apart + pass_seconds(problem, passes)
    return Estimate(schedule, compute, busy, gather + exposed, whole_bytes(problem))


def _scaled_bytes(problem: Problem) -> float:
    """Bytes of a pass that scales what int8 weights made: of one dot's result, it is a part of it."""
    op, widths = problem.op, (problem.lhs_bytes, problem.rhs_bytes)
    if min(widths) > 1 or max(widths) == 1:
        return 0.0
    return problem.elements(op.out) * (op.dtype.itemsize + max(widths)) * problem.rights


def _all_axes(op: Operation) -> list[tuple[str, ...]]:
    """The axes of each collective."""
    ends = [end.axes for end in op.ends]
    return [*ends, op.reduce] if op.reduce else ends
