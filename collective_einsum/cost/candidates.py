"""The schedules that schedule="auto" compares."""

from __future__ import annotations

import math

from ..ops.einsum_op import Operation
from ..ops.feasibility import gathers_into_result
from ..ops.schedule import DIRECTIONS, Direction, Schedule
from .workload import Workload

# Numbers of chunks.
CHUNKS: tuple[int | tuple[int, ...], ...] = (2, 4, 8)
# Sizes of chunks, in proportion, for an async gather: nothing hides the first one's all-gather, and
# the dot of every chunk hides the next one's.
GATHERED_CHUNKS: tuple[int | tuple[int, ...], ...] = (
    3,
    (1, 3),
    (1, 2, 4),
    (1, 3, 5),
    (1, 4, 11),
    (1, 2, 3, 3),
)
# Fewest elements, of the dimension that is split, for each unit of a proportion.
LEAST_LENGTH = 8


def candidates(work: Workload) -> list[Schedule]:
    """Every schedule that can serve an einsum, "blocking" first.

    Only "blocking" where nothing is sent or arrays are empty; async ones only where the chip's compiler
    overlaps the collectives that they need.
    """
    op = work.op
    n = math.prod(work.sides(op.axes))
    schedules = [Schedule("blocking")]
    if n == 1 or 0 in work.sizes.values():
        return schedules
    shards = [work.sizes[collective.label] for collective in op.collectives]
    # The one with the fewest hops first: it wins ties.
    directions: list[Direction] = [
        d for d in reversed(DIRECTIONS) if d != "bidirectional" or min(shards, default=2) >= 2 * n
    ]
    if op.collectives and op.axes:
        both_ends = len(op.collectives) == 2
        for direction in directions:
            rings = [Schedule("ring", direction)]
            rings += [Schedule("ring", direction, ring_of="gather")] if both_ends else []
            schedules += [ring for ring in rings if not _slices_int8_halves(work, ring)]
    schedules += _chunked(work, "latency", CHUNKS)
    if _runs_async(work):
        gathered = GATHERED_CHUNKS if op.gather is not None else ()
        schedules += _chunked(work, "async", CHUNKS + gathered)
    return schedules


def _slices_int8_halves(work: Workload, ring: Schedule) -> bool:
    """Whether the dots of a ring slice halves of shards out of int8 weights, which XLA:TPU copies once
    more for each: [512, 4608] x [4608, 18432] on v5e, gathered over 4, takes 1571 us so, and 588 us in
    whole shards (libtpu 0.0.50.1)."""
    op, gather = work.op, work.op.gather
    if gather is None or op.ring(ring) is not gather or ring.direction != "bidirectional":
        return False
    return gather.label in op.rhs[:-1] and work.rhs_dtype.itemsize == 1


def _runs_async(work: Workload) -> bool:
    """Whether the chip's compiler overlaps lax's own collectives of this einsum with dots."""
    op, chip = work.op, work.chip
    needed = {"all_gather"} if op.gather is not None else set()
    needed |= {"all_to_all"} if op.scatter is not None else set()
    # XLA:TPU compiles a gather over three axes to an all-reduce.
    sides = work.slice_sides(op.gather.axes) if op.gather is not None else []
    reduces = op.reduce or (chip.torus_dims and sum(side > 1 for side in sides) > 2)
    return not reduces and needed <= set(chip.asynchronous)


def _chunked(
    work: Workload, direction: Direction, chunks: tuple[int | tuple[int, ...], ...]
) -> list[Schedule]:
    """A schedule of one chunk, and one for each label that can be split and each of `chunks`."""
    schedules = [Schedule("chunked", direction)]
    for label in chunk_labels(work.op, direction):
        # Sums over chunks are kept in 32 bits, which costs more than is hidden.
        if direction == "async" and label not in work.op.out:
            continue
        split = [Schedule("chunked", direction, chunks=count, label=label) for count in chunks]
        size = chunk_length(work, label)
        schedules += [s for s in split if size >= LEAST_LENGTH * sum(s.proportions)]
    return schedules


def chunk_labels(op: Operation, direction: Direction) -> list[str]:
    """The labels that a chunked schedule can split."""
    moved = op.lhs if op.gather is not None else op.lhs + op.rhs
    summed = op.scatter is not None or op.reduce
    labels = [
        c for c in dict.fromkeys(moved) if c not in op.moved_labels and (c in op.out or not summed)
    ]
    if direction == "async" and op.gather is not None and gathers_into_result(op, op.gather.label):
        labels.append(op.gather.label)
    return labels


def chunk_length(work: Workload, label: str) -> int:
    """The length that is split into chunks: the label's size, or its shard's for the gathered one."""
    gathered, size = work.op.gather, work.sizes[label]
    return (
        size // work.devices(gathered) if gathered is not None and label == gathered.label else size
    )
