"""The predicted cost of a chunked schedule: rings for each chunk, and dots of other chunks."""

from __future__ import annotations

from ..ops.einsum_op import EinsumCollective, Operation
from ..ops.schedule import POINT_TO_POINT_DEVICES, Schedule
from .dots import chunk_dots, dot_seconds, pass_seconds, slice_copy_seconds
from .lax_collectives import collective_seconds, move_seconds, scatter_splits_tiles
from .lowering_rules import scatters_a_plane
from .torus import (
    all_reduce_seconds,
    point_to_point_seconds,
    reduce_scatter_seconds,
    ring_gather_seconds,
)
from .workload import Estimate, Workload

# The fraction of the bandwidth of HBM that compilers reckon with for chunks too large for on-chip
# memory that are written into a result: 192 us for [2048, 18432] of bf16 on v6e, read and written,
# where smaller arrays are added at the bandwidth of HBM (libtpu 0.0.50.1).
LARGE_PASSES = 0.48


def chunked_estimate(work: Workload, schedule: Schedule) -> Estimate:
    """The cost of a chunked schedule that is not async.

    Memory passes join the gathered chunks and slice the scattered ones. The first chunk's gather and
    the last one's scatter overlap with nothing.
    """
    op, count = work.op, len(schedule.proportions)
    if count == 1 and op.scatter is not None:
        return _one_chunk(work, op.scatter, schedule)
    gather = scatter = passes = joining = 0.0
    if op.gather is not None:
        sent = work.full_bytes(op.gather)
        gather = _rings_seconds(work, op.gather, schedule)
        passes += 2 * sent
        joining = pass_seconds(work, 2 * sent)
    if op.scatter is not None:
        sent = work.full_bytes(op.scatter)
        scatter = _rings_seconds(work, op.scatter, schedule)
        passes += 3 * sent
    if op.reduce:
        scatter += collective_seconds(work)[1]
        passes += 5 * work.sum_bytes
    dots = sum(chunk_dots(work, schedule, gathered="by permutes"))
    label = schedule.label
    in_place = op.gathers_alone and count > 1 and label is not None and label in op.out
    joined = _joined_seconds(work, count) if in_place else 0.0
    if count > 1 and not in_place:
        # Each chunk is written into the result.
        passes += 2 * work.result_bytes + _scaled_bytes(work)
    copying = slice_copy_seconds(work) if count > 1 and (schedule.label or "") in op.rhs else 0.0
    # A dot overlaps one hop of each collective.
    hops = max((sum(work.axis_sizes[axis] // 2 for axis in axes) for axes in _axes(op)), default=1)
    hidden = min(gather + scatter, dots) / max(1, hops)
    if in_place:
        hidden = _hidden_seconds(work, gather, dots)
    hidden *= (count - 1) / count
    # What has arrived is joined while the rest is under way.
    waiting = max(0.0, gather - joining) + scatter
    return Estimate(
        schedule=schedule,
        compute=dots + _passes_seconds(work, passes) + joined + copying,
        communication=gather + scatter,
        exposed=max(0.0, waiting - hidden),
        memory=work.temporary_bytes,
    )


def _hidden_seconds(work: Workload, gather: float, dots: float) -> float:
    """Seconds of a gather's rings that dots of other chunks hide, were there dots for all of them.

    Each dot hides the first hop of the next chunk's ring, of whole shards both ways; of the last hop of
    an even number of devices half is sent. But where hops start early, that hop is under way, and shares
    the links, with the last one of the chunk that the dot waits for.
    """
    if work.op.gather is None or work.chip.starts_hops_early:
        return 0.0
    sizes = [work.axis_sizes[axis] for axis in work.op.gather.axes]
    hops = (sizes[0] - 1) / 2 if len(sizes) == 1 else sum(size // 2 for size in sizes)
    return min(gather / max(1.0, hops), dots)


def _joined_seconds(work: Workload, count: int) -> float:
    """Seconds in which chunks become one result, beside their dots, which write them there.

    XLA:TPU puts a result that fits into on-chip memory together there, and copies it to HBM: 53 us for
    [2048, 18432] of bf16 on v6e; two chunks do not if it takes more than half. Large results of bf16 are
    written more slowly, as the arrays of `LARGE_PASSES`: 90 us (libtpu 0.0.50.1).
    """
    # What is scaled is in the dtype of its lhs by then.
    scaled = work.widened == work.op.rhs
    chip, size = work.chip, work.result_bytes
    if scaled:
        size = work.out_elements * work.lhs_dtype.itemsize * work.rhs_count
    if not chip.observed or size > chip.on_chip_bytes:
        return 0.0
    written = size / (LARGE_PASSES * chip.hbm_bandwidth) if size > chip.on_chip_bytes / 4 else 0.0
    on_chip = count > 2 or size <= chip.on_chip_bytes / 2
    copied = pass_seconds(work, size) if on_chip else 0.0
    return copied + (0.0 if scaled else written)


def _passes_seconds(work: Workload, moved: float) -> float:
    """Seconds of the memory passes of all chunks."""
    chip = work.chip
    large = moved > chip.on_chip_bytes and chip.observed and work.widened != work.op.rhs
    least = moved / (LARGE_PASSES * chip.hbm_bandwidth) if large else 0.0
    return max(least, pass_seconds(work, moved))


def _rings_seconds(work: Workload, collective: EinsumCollective, schedule: Schedule) -> float:
    """Seconds in which the rings of all chunks send."""
    count = len(schedule.proportions)
    each = ring_gather_seconds(
        work.chip,
        work.sides(collective.axes),
        work.full_bytes(collective) / count,
        full_shards=schedule.direction == "latency",
    )
    return count * each


def _one_chunk(work: Workload, collective: EinsumCollective, schedule: Schedule) -> Estimate:
    """The cost of a single chunk: each result but the last is scattered, point to point, while the
    dot of the next result runs; the last one by lax, whose scatter the compiler may make an all-reduce.
    """
    op, n = work.op, work.devices(collective)
    gather, _ = collective_seconds(work)
    one_result = work.full_bytes(collective) / work.rhs_count
    sides = work.slice_sides(collective.axes)
    scatter = reduce_scatter_seconds(work.chip, sides, one_result)
    passes = moving = 0.0
    if scatters_a_plane(work.chip, sides):
        scatter = all_reduce_seconds(work.chip, sides, one_result)
        moving = work.chip.pass_seconds("slice", one_result)
    if op.out[0] != collective.label:
        moving += move_seconds(work, collective, "move")
    elif scatter_splits_tiles(work, collective):
        passes = 2 * one_result * work.rhs_count
    dots, point_to_point, exposed = dot_seconds(work, gathered="by lax"), 0.0, scatter
    others = work.rhs_count - 1
    if op.form == "shared_lhs" and n <= POINT_TO_POINT_DEVICES:
        # Every block takes the links on its way: more of them, the longer the axes.
        along = work.sides(collective.axes)
        point_to_point = point_to_point_seconds(work.chip, along, one_result)
        exposed += others * max(0.0, point_to_point - dots / work.rhs_count)
        passes += others * one_result * (2 * (n - 1) / n + 1)
    else:
        exposed *= work.rhs_count
    return Estimate(
        schedule=schedule,
        compute=dots + moving + pass_seconds(work, passes),
        communication=gather + scatter + others * max(point_to_point, scatter),
        exposed=gather + exposed,
        memory=work.temporary_bytes,
    )


def _scaled_bytes(work: Workload) -> float:
    """Bytes of the memory pass that multiplies the chunks' results by the scales of int8 weights; the
    result of a single dot is scaled by the dot."""
    if not work.widened:
        return 0.0
    wide = max(work.lhs_dtype.itemsize, work.rhs_dtype.itemsize)
    return work.out_elements * (work.op.dtype.itemsize + wide) * work.rhs_count


def _axes(op: Operation) -> list[tuple[str, ...]]:
    """The mesh axes of each collective."""
    axes = [collective.axes for collective in op.collectives]
    return [*axes, op.reduce] if op.reduce else axes
