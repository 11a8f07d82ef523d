"""The schedules that "auto" weighs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..execution import pieces_schedule as piecewise
from ..ops.schedule import DIRECTIONS, Direction, Schedule
from .dots import Problem

if TYPE_CHECKING:
    from ..ops.einsum_op import Operation

# Numbers of chunks, or their proportions.
CHUNKS: tuple[int | tuple[int, ...], ...] = (2, 4, 8)
# Of a direct gather, nothing hides the first chunk, and each other one is hidden by the one before.
GATHERED_CHUNKS: tuple[int | tuple[int, ...], ...] = (
    3,
    (1, 3),
    (1, 2, 4),
    (1, 3, 5),
    (1, 4, 11),
    (1, 2, 3, 3),
)


def candidates(problem: Problem) -> list[Schedule]:
    """Every schedule that can serve an operation, blocking first.

    Of nothing at all, only that. What goes directly only where the chip's compiler runs it beside
    other work.
    """
    op = problem.op
    n = math.prod(problem.axis_sizes[axis] for axis in op.axes)
    found = [Schedule("blocking")]
    if n == 1 or 0 in problem.sizes.values():
        return found
    shards = [problem.sizes[end.label] for end in op.ends]
    # The one with the fewest hops first: it wins ties.
    directions: list[Direction] = [
        d for d in reversed(DIRECTIONS) if d != "bidirectional" or min(shards, default=2) >= 2 * n
    ]
    if op.ends and op.axes:
        for direction in directions:
            found.append(Schedule("ring", direction))
            if len(op.ends) == 2:
                found.append(Schedule("ring", direction, end="gather"))
    found += _chunked(problem, "latency", CHUNKS)
    if _goes_directly(problem):
        found += _chunked(
            problem, "async", CHUNKS + (GATHERED_CHUNKS if op.gather is not None else ())
        )
    return found


def _goes_directly(problem: Problem) -> bool:
    """Whether lax's own collectives run beside dots."""
    op, chip = problem.op, problem.chip
    needed = {"all_gather"} if op.gather is not None else set()
    needed |= {"all_to_all"} if op.scatter is not None else set()
    # A gather over three axes becomes an all-reduce.
    gathered = op.gather.axes if op.gather is not None else ()
    over = sum(problem.axis_sizes[axis] > 1 for axis in gathered)
    reduces = op.reduce or (chip.torus_dims and over > 2)
    return not reduces and needed <= set(chip.asynchronous)


def _chunked(
    problem: Problem, way: Direction, chunks: tuple[int | tuple[int, ...], ...]
) -> list[Schedule]:
    """Each label that can be cut, into each of `chunks`."""
    found = [Schedule("chunked", way)]
    for label in cuttable(problem.op, way):
        # Sums over chunks go through 32 bits, which is dearer than what is hidden.
        if way == "async" and label not in problem.op.out:
            continue
        cut = [Schedule("chunked", way, chunks=each, label=label) for each in chunks]
        found += [each for each in cut if length(problem, label) >= 8 * sum(each.shares)]
    return found


def cuttable(op: Operation, way: Direction) -> list[str]:
    """The labels that can be cut into chunks, which go one way or another."""
    moved = op.lhs if op.gather is not None else op.lhs + op.rhs
    summed = op.scatter is not None or op.reduce
    found = [c for c in dict.fromkeys(moved) if c not in op.taken and (c in op.out or not summed)]
    if way == "async" and op.gather is not None and piecewise.suits(op, op.gather.label):
        found.append(op.gather.label)
    return found


def length(problem: Problem, label: str) -> int:
    """How long what is cut along a label is: of a gathered one, its shards."""
    end = problem.op.gather
    whole = problem.sizes[label]
    return whole // problem.n(end) if end is not None and label == end.label else whole
