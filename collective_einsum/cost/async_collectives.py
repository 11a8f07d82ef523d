"""What an operation costs whose collectives are lax's own, and run beside its dots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..chips.tiles import TILE_ROWS
from ..execution import pieces_schedule as piecewise
from ..ops.schedule import Schedule
from .dots import (
    Estimate,
    Problem,
    dot_seconds,
    dots_of_chunks,
    parts_of,
    pass_seconds,
    whole_bytes,
    whole_dot,
)
from .lax_collectives import gather_reduces
from .torus import all_gather_seconds, all_to_all_seconds

if TYPE_CHECKING:
    from ..ops.einsum_op import End

# Times that a TPU's passes over columns that are put, or cut out, count as one over all columns.
PUT_PASSES = 3.0


def direct_estimate(problem: Problem, schedule: Schedule) -> Estimate:
    """lax's all-gathers and all-to-alls beside the dots of other chunks and results, but for the
    first gather and the last scatter; of the one without the other, beside what else there is."""
    op, label = problem.op, schedule.label
    if op.gather is not None and piecewise.suits(op, label):
        return _pieces(problem, op.gather, schedule)
    dots, parts, passes = [whole_dot(problem)], [1.0], 0.0
    if label is not None:
        dots = dots_of_chunks(problem, schedule)
        parts = parts_of(schedule, problem.sizes[label])
    gathers = scatters = [0.0] * len(parts)
    if op.gather is not None:
        sent = problem.sent(op.gather)
        twice = 2 if gather_reduces(problem, op.gather) else 1
        gathers = [
            all_gather_seconds(problem.chip, problem.sides(op.gather.axes), part * twice * sent)
            for part in parts
        ]
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
    ends = [gathers[0], max(0.0, scatters[-1] - problem.overlap_seconds)]
    if op.scatter is None:
        ends = [max(0.0, gathers[0] - problem.overlap_seconds)]
    compute += pass_seconds(problem, passes)
    busy = sum(gathers) + problem.rights * sum(scatters)
    return Estimate(schedule, compute, busy, sum(ends) + late, whole_bytes(problem))


def _exchange(problem: Problem, end: End, part: float = 1.0) -> float:
    """The all-to-all of a part of one result."""
    return all_to_all_seconds(
        problem.chip, problem.sides(end.axes), part * problem.sent(end) / problem.rights
    )


def _exchange_passes(problem: Problem, end: End) -> float:
    """Seconds of reading what arrives once more, and of moving it apart if it is not rows."""
    op, chip, moved = problem.op, problem.chip, problem.sent(end)
    if op.out[0] == end.label:
        return pass_seconds(problem, moved)
    fill = chip.scatter_fill_seconds if problem.elements(op.out[:-1]) > TILE_ROWS else 0.0
    return pass_seconds(problem, (1 + chip.exchange_passes) * moved) + fill * problem.rights


def _pieces(problem: Problem, end: End, schedule: Schedule) -> Estimate:
    """The first piece of every shard comes beside the dot of the own shard, each other one beside the
    dots of the piece before; see `piecewise`."""
    op = problem.op
    n, whole = problem.n(end), problem.sent(end)
    parts = parts_of(schedule, problem.sizes[end.label] // n)
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
    gathers = [
        all_gather_seconds(problem.chip, problem.sides(end.axes), part * whole) for part in parts
    ]
    exposed = sum(max(0.0, t - step) for t, step in zip(gathers, steps[:-1], strict=True))
    compute = sum(steps)
    busy = sum(gathers)
    if op.scatter is not None:
        scatter = problem.rights * _exchange(problem, op.scatter)
        compute += _exchange_passes(problem, op.scatter)
        busy, exposed = busy + scatter, exposed + max(0.0, scatter - problem.overlap_seconds)
    return Estimate(schedule, compute, busy, exposed, int(whole))
