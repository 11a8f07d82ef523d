"""What an operation costs on a chip under each schedule: seconds and bytes, from shapes alone.

Predicted, as what it is made of: see `cost_dots`, `cost_lax` and `cost_ring`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import blocks, piecewise
from .cost_dots import TILE, Estimate, Problem, dot_seconds, pass_seconds, whole_dot
from .cost_lax import (
    TILE_ROWS,
    all_to_all_seconds,
    blocking_seconds,
    ends_seconds,
    gather_reduces,
    parts_tiles,
    scatter_passes,
)
from .cost_ring import ring_estimate
from .schedule import Schedule

if TYPE_CHECKING:
    from .operation import End, Operation

# Times that a TPU reads and writes an operand that an all-reduce gathers: zeros are written first.
REDUCED_PASSES = 2.45
# Times that a TPU's passes over columns that are put, or cut out, count as one over all columns.
PUT_PASSES = 3.0
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
        return Estimate(schedule, compute, sent, sent, _whole_bytes(problem))
    if schedule.kind == "chunked" or turning is None:
        return _chunked(problem, schedule)
    return ring_estimate(problem, turning, schedule)


def _whole_bytes(problem: Problem) -> int:
    """Bytes of the gathered operand and of the results before they are scattered."""
    op = problem.op
    gathered = problem.sent(op.gather) if op.gather is not None else 0
    partial = 0.0
    if op.scatter is not None:
        partial = problem.sent(op.scatter)
    return int(gathered + partial)


def _chunked(problem: Problem, schedule: Schedule) -> Estimate:
    """Assembling and slicing in passes; what the first and last chunks send has nothing beside it."""
    op, count = problem.op, len(schedule.shares)
    if schedule.direction == "direct":
        if piecewise.suits(op, schedule.label):
            return _pieces(problem, schedule)
        return _direct(problem, schedule)
    if count == 1 and op.scatter is not None:
        return _whole(problem, op.scatter, schedule)
    gather, scatter = (
        blocking_seconds(problem, end.axes, problem.sent(end)) if end is not None else 0.0
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
    dots = sum(_dots_of_chunks(problem, schedule))
    if count > 1:
        # Chunks land in the result, and a dot hides one hop of each collective.
        passes += 2 * problem.elements(op.out) * op.dtype.itemsize * problem.rights
        passes += _scaled_bytes(problem)
    hops = max((sum(problem.axis_sizes[a] // 2 for a in axes) for axes in _all_axes(op)), default=1)
    hidden = min(gather + scatter, dots) * (count - 1) / count / max(1, hops)
    exposed = gather + scatter - hidden
    compute = dots + pass_seconds(problem, passes)
    return Estimate(schedule, compute, gather + scatter, exposed, _whole_bytes(problem))


def _whole(problem: Problem, end: End, schedule: Schedule) -> Estimate:
    """One chunk: lax's collectives, but results before the last are scattered beside dots."""
    op, n = problem.op, problem.n(end)
    gather, _ = ends_seconds(problem)
    each = problem.sent(end) / problem.rights
    scatter = blocking_seconds(problem, end.axes, each)
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
        # Half of all blocks go half way round: each link carries a third more than in a ring.
        straight = scatter * 4 / 3
        late = max(0.0, straight - dots / problem.rights)
        exposed += (problem.rights - 1) * late
        passes += (problem.rights - 1) * each * (2 * (n - 1) / n + 1)
    else:
        exposed *= problem.rights
    busy = gather + scatter + (problem.rights - 1) * max(straight, scatter)
    compute = dots + apart + pass_seconds(problem, passes)
    return Estimate(schedule, compute, busy, gather + exposed, _whole_bytes(problem))


def _parts(schedule: Schedule, length: int) -> list[float]:
    """The chunks, as parts of a length that is cut between tiles."""
    return [size / length for _, size in blocks.pieces_of(length, schedule.shares, TILE)]


def _dots_of_chunks(problem: Problem, schedule: Schedule) -> list[float]:
    """The dots of each chunk."""
    label = schedule.label
    if label is None:
        return [dot_seconds(problem)]
    return [
        dot_seconds(problem, **{label: part}) for part in _parts(schedule, problem.sizes[label])
    ]


def _scaled_bytes(problem: Problem) -> float:
    """Bytes of a pass that scales what int8 weights made: of one dot's result, it is a part of it."""
    op, widths = problem.op, (problem.lhs_bytes, problem.rhs_bytes)
    if min(widths) > 1 or max(widths) == 1:
        return 0.0
    return problem.elements(op.out) * (op.dtype.itemsize + max(widths)) * problem.rights


def _direct(problem: Problem, schedule: Schedule) -> Estimate:
    """lax's all-gathers and all-to-alls beside the dots of other chunks and results, but for the
    first gather and the last scatter; of the one without the other, beside what else there is."""
    op, label = problem.op, schedule.label
    dots, parts, passes = [whole_dot(problem)], [1.0], 0.0
    if label is not None:
        dots = _dots_of_chunks(problem, schedule)
        parts = _parts(schedule, problem.sizes[label])
    gathers = scatters = [0.0] * len(parts)
    if op.gather is not None:
        sent = problem.sent(op.gather)
        twice = 2 if gather_reduces(problem, op.gather) else 1
        gathers = [blocking_seconds(problem, op.gather.axes, part * twice * sent) for part in parts]
        if label is not None and op.lhs[0] != label:
            passes += 2 * sent
    compute = sum(dots)
    if op.gather is not None and len(parts) > 1:
        # What arrives is not where the dot before left off: each begins anew.
        compute += len(parts) * problem.chip.dot_fill_seconds
    if op.scatter is not None:
        scatters = [_exchange(problem, op.scatter, part) for part in parts]
        compute += _exchange_passes(problem, op.scatter)
    late = sum(max(0.0, t - dot) for t, dot in zip(gathers[1:], dots[:-1], strict=True))
    # A scatter has the next result's dot beside it, if that is not the last one.
    for i, (t, dot) in enumerate(zip(scatters, dots, strict=True)):
        following = dots[i + 1] if i + 1 < len(dots) else 0.0
        late += (problem.rights - 1) * max(0.0, t - dot / problem.rights)
        late += max(0.0, t - following / problem.rights) if following else 0.0
    ends = [gathers[0], max(0.0, scatters[-1] - problem.beside)]
    if op.scatter is None:
        ends = [max(0.0, gathers[0] - problem.beside)]
    compute += pass_seconds(problem, passes)
    busy = sum(gathers) + problem.rights * sum(scatters)
    return Estimate(schedule, compute, busy, sum(ends) + late, _whole_bytes(problem))


def _exchange(problem: Problem, end: End, part: float = 1.0) -> float:
    """The all-to-all of a part of one result."""
    return all_to_all_seconds(problem, end.axes, part * problem.sent(end) / problem.rights)


def _exchange_passes(problem: Problem, end: End) -> float:
    """Seconds of reading what arrives once more, and of moving it apart if it is not rows."""
    op, chip, moved = problem.op, problem.chip, problem.sent(end)
    if op.out[0] == end.label:
        return pass_seconds(problem, moved)
    fill = chip.scatter_fill_seconds if problem.elements(op.out[:-1]) > TILE_ROWS else 0.0
    return pass_seconds(problem, (1 + chip.scatter_passes[0]) * moved) + fill * problem.rights


def _pieces(problem: Problem, schedule: Schedule) -> Estimate:
    """The first piece of every shard comes beside the dot of the own shard, each other one beside the
    dots of the piece before; see `piecewise`."""
    op, end = problem.op, problem.op.gather
    if end is None:
        raise ValueError(
            f"schedule {str(schedule)!r} cuts the shards of a gather that is not there"
        )
    n, whole = problem.n(end), problem.sent(end)
    parts = _parts(schedule, problem.sizes[end.label] // n)
    # Each dot's columns are put into their place, and each piece is cut out of the shard.
    put = PUT_PASSES * problem.elements(op.out) / n * op.dtype.itemsize * problem.rights
    own = dot_seconds(problem, **{end.label: 1 / n}) + pass_seconds(problem, put)
    steps = [own]
    for part in parts:
        dot = dot_seconds(problem, **{end.label: part / n})
        steps.append((n - 1) * (dot + pass_seconds(problem, part * put)))
    if len(parts) > 1:
        cut = PUT_PASSES * whole / n
        steps = [
            step + pass_seconds(problem, part * cut)
            for step, part in zip(steps, [*parts, 0.0], strict=True)
        ]
    gathers = [blocking_seconds(problem, end.axes, part * whole) for part in parts]
    exposed = sum(max(0.0, t - step) for t, step in zip(gathers, steps[:-1], strict=True))
    compute = sum(steps)
    busy = sum(gathers)
    if op.scatter is not None:
        scatter = problem.rights * _exchange(problem, op.scatter)
        compute += _exchange_passes(problem, op.scatter)
        busy, exposed = busy + scatter, exposed + max(0.0, scatter - problem.beside)
    return Estimate(schedule, compute, busy, exposed, int(whole))


def _all_axes(op: Operation) -> list[tuple[str, ...]]:
    """The axes of each collective."""
    ends = [end.axes for end in (op.gather, op.scatter) if end is not None]
    return [*ends, op.reduce] if op.reduce else ends
