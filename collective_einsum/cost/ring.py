"""What an operation costs under a ring schedule, hop by hop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..ops.schedule import Schedule
from ..rings.ring_steps import Lane, lanes
from ..rings.tours import tours
from .dots import Estimate, Problem, dot_seconds, pass_seconds
from .lax_collectives import ends_seconds, hop_seconds, scatter_passes, wraps
from .torus import all_gather_seconds

if TYPE_CHECKING:
    from ..ops.einsum_op import End


def ring_estimate(problem: Problem, turning: End, schedule: Schedule) -> Estimate:
    """The cost of `problem` with the ring of one of its ends, `turning`."""
    op = problem.op
    gather, scatter = ends_seconds(problem)
    other = scatter if turning is op.gather else gather
    n = problem.n(turning)
    # Rings through all devices of several axes, or that of the major axis.
    strands = _touring(problem, turning)
    around = n if strands else problem.axis_sizes[turning.axes[0]]
    whole = problem.sent(turning)
    inner = (
        all_gather_seconds(problem.chip, problem.sides(turning.axes[1:]), whole / around)
        if not strands
        else 0.0
    )
    shard = problem.sizes[turning.label] // n
    found = lanes(around, schedule.direction, max(2, shard))
    span = max(2, shard)
    time, links = _turns(problem, turning, found, span, whole / around, strands)
    compute = _dots(problem, turning, found, span, around, max(1, strands))
    copied = _sliced_seconds(problem, turning)
    # The gather over the minor axes runs beside copies, if beside anything.
    hides = turning is op.gather and "all_gather" in problem.chip.asynchronous
    hidden = copied if hides else 0.0
    exposed = max(0.0, time - compute) + max(0.0, inner - hidden) + other
    compute += copied
    block = problem.elements(op.out) / around * problem.rights
    memory = 2 * whole / around
    if turning is op.scatter:
        compute += _additions(problem, found, span, block)
        if len(turning.axes) > 1:
            compute += scatter_passes(problem, turning, 1 / around)
        memory += 4 * block
    elif turning.label not in op.out:
        memory += 4 * block * around
    else:
        # Every piece of the result is put into its place, and strands are cut from what comes.
        moved = 2.0 * around * block * op.dtype.itemsize
        if strands > 1:
            moved += 2 * whole / around
        compute += pass_seconds(problem, moved)
    return Estimate(schedule, compute, links + inner + other, exposed, int(memory))


def _additions(problem: Problem, found: Sequence[Lane], span: int, block: float) -> float:
    """What a scatter ring adds: in the dots' own loops, if it is there before the dot and whole.

    The last sum of a single result lands after its own dot, those of a single lane after every dot;
    they are added in passes, of a sum in 32 bits and two on the wire.
    """
    wire = problem.op.sum_wire.itemsize
    adds = sum(lane.hops * lane.size / span for lane in found)
    apart = 0.0
    if any(lane.size < span for lane in found):
        apart = adds
    elif problem.op.form == "sum" or problem.rights == 1:
        apart = adds if len(found) == 1 else sum(lane.size / span for lane in found)
    fused = (adds - apart) * block * wire / problem.chip.hbm_bandwidth
    return fused + apart * pass_seconds(problem, block * (4 + 2 * wire))


def _sliced_seconds(problem: Problem, turning: End) -> float:
    """What the TPU compiler spends on slices of rows of an int8 operand, which it copies before their
    dots; seen in its schedules."""
    op, chip = problem.op, problem.chip
    if problem.rhs_bytes > 1 or turning.label not in op.rhs[:-1]:
        return 0.0
    return pass_seconds(problem, chip.int8_slice_passes * problem.elements(op.rhs) * problem.rights)


def _hop_dot(problem: Problem, turning: End, part: float) -> float:
    """The dot of a part of a shard that came, or that will leave."""
    op, chip = problem.op, problem.chip
    seconds = dot_seconds(problem, **{turning.label: part})
    whole = 4 * problem.elements(op.out) * problem.rights
    # An operand that stays and has the rows is cut by columns.
    large = chip.large_sum_bytes[op.out[:1] in op.rhs]
    if turning.label in op.out or whole / problem.rights <= large:
        return seconds
    return seconds + whole / chip.sum_bandwidth


def _touring(problem: Problem, turning: End) -> int:
    """Rings through all devices of the axes of an end, 0 where it goes round the major axis."""
    if turning is not problem.op.gather or turning.label in problem.op.rhs or len(turning.axes) < 2:
        return 0
    sizes = tuple(problem.axis_sizes[axis] for axis in turning.axes)
    return len(tours(sizes, tuple(problem.chip.wraps(size) for size in sizes)))


def _dots(
    problem: Problem, turning: End, found: Sequence[Lane], span: int, around: int, strands: int
) -> float:
    """The dots of every turn and of the own block."""
    seconds = strands * dot_seconds(problem, **{turning.label: 1 / around / strands})
    for lane in found:
        part = lane.size / span / around / strands
        seconds += strands * lane.hops * _hop_dot(problem, turning, part)
    return seconds


def _turns(
    problem: Problem, turning: End, found: Sequence[Lane], span: int, sent: float, touring: int
) -> tuple[float, float]:
    """Seconds of a ring with its dots, hop by hop, and seconds that its links are busy.

    The TPU compiler starts a hop one dot before it must land, so that one dot hides it, however many
    there are between two hops; where two tours have hops at once, two do.
    """
    strands = max(1, touring)
    around = problem.n(turning) if touring else problem.axis_sizes[turning.axes[0]]
    axis = None if touring else turning.axes[0]
    last = max((lane.hops for lane in found), default=0)
    one = dot_seconds(problem, **{turning.label: 1 / around / strands})
    time, busy = one * strands, 0.0
    for hop in range(1, last + 1):
        active = [lane for lane in found if lane.hops >= hop]
        parts = [sent * lane.size / span / strands for lane in active]
        if axis is None or wraps(problem, axis):
            parts = [max(parts)]
        elif turning is problem.op.gather:
            # Each lane of a line takes links both ways, and all leave at once.
            parts = [sum(parts)]
        hops = [hop_seconds(problem, axis, part) for part in parts]
        time += sum(max(0.0, each - strands * one) for each in hops)
        busy += sum(hops)
        dots = [_hop_dot(problem, turning, lane.size / span / around / strands) for lane in active]
        time, one = time + strands * sum(dots), max(dots)
    return time, busy
