"""The predicted cost of the async schedule: lax's collectives, which the compiler overlaps with dots."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from ..ops.einsum_op import EinsumCollective
from ..ops.feasibility import gathers_into_result
from ..ops.schedule import Schedule
from .dots import (
    chunk_dots,
    chunk_fractions,
    dot_seconds,
    pass_seconds,
    slice_copy_seconds,
)
from .lax_collectives import gather_reduces, move_seconds
from .torus import all_gather_seconds, all_to_all_seconds, offloads
from .workload import Estimate, Workload

# Memory passes over the columns that are written into a result, or sliced from an operand, as a TPU
# counts them.
COLUMN_PASSES = 3.0


def async_estimate(work: Workload, schedule: Schedule) -> Estimate:
    """The cost of an async schedule.

    The first chunk's all-gather overlaps with nothing, every other one with the dot of the chunk
    before; the all-to-all of a result's chunk overlaps with the dots that follow. With one collective
    only, `Workload.overlap_seconds` overlap the one that is exposed.
    """
    op, label = work.op, schedule.label
    if op.gather is not None and gathers_into_result(op, label):
        return _own_shard_first(work, op.gather, schedule)
    dots, fractions = [dot_seconds(work, gathered="by lax")], [1.0]
    if label is not None:
        dots, fractions = (
            chunk_dots(work, schedule),
            chunk_fractions(schedule, work.sizes[label]),
        )
    gathers = _gather_seconds(work, fractions)
    scatters = _scatter_seconds(work, fractions)
    compute = sum(dots) + pass_seconds(work, _joined_bytes(work, label))
    if label is not None and len(dots) > 1 and label in op.rhs:
        compute += slice_copy_seconds(work)
    if op.gather is not None and len(dots) > 1:
        # A chunk does not arrive where the dot before left off: each dot fills its pipeline anew.
        compute += len(dots) * work.chip.hbm_fill_seconds
    if op.scatter is not None:
        compute += _exchange_pass_seconds(work, op.scatter)
    before = work.overlap_seconds if op.scatter is None else 0.0
    exposed = _gathers_exposed(work, gathers, dots, before)
    if op.scatter is not None:
        exposed += max(0.0, scatters[-1] - work.overlap_seconds)
    return Estimate(
        schedule=schedule,
        compute=compute,
        communication=sum(gathers) + work.rhs_count * sum(scatters),
        exposed=exposed + _scatters_exposed(work, dots, scatters),
        memory=work.temporary_bytes,
    )


def _gather_seconds(work: Workload, fractions: list[float]) -> list[float]:
    """Seconds of the all-gather of each chunk."""
    gather = work.op.gather
    if gather is None:
        return [0.0] * len(fractions)
    sent = (2 if gather_reduces(work, gather) else 1) * work.full_bytes(gather)
    sides = work.slice_sides(gather.axes)
    return [all_gather_seconds(work.chip, sides, fraction * sent) for fraction in fractions]


def _scatter_seconds(work: Workload, fractions: list[float]) -> list[float]:
    """Seconds of the all-to-all of each chunk of one result."""
    scatter = work.op.scatter
    if scatter is None:
        return [0.0] * len(fractions)
    return [_exchange_seconds(work, scatter, fraction) for fraction in fractions]


def _joined_bytes(work: Workload, label: str | None) -> float:
    """Bytes that are read and written to join the gathered chunks, unless they are chunks of the first
    dimension."""
    gather = work.op.gather
    if gather is None or label is None or work.op.lhs[0] == label:
        return 0.0
    return 2 * work.full_bytes(gather)


def _gathers_exposed(
    work: Workload, gathers: Sequence[float], dots: Sequence[float], before: float
) -> float:
    """Seconds for which the dots of chunks wait for their all-gathers.

    A gather starts when the one before has arrived, and overlaps with the dot of that one's chunk.
    SparseCores are given all of them at once, and either run one after another or share the links.

    Args:
      work: the einsum.
      gathers: seconds of each chunk's all-gather alone.
      dots: seconds of each chunk's dot.
      before: seconds of compute that overlap with the first gather.
    """
    gather = work.op.gather
    if gather is None:
        return 0.0
    if not offloads(work.chip, "all_gather"):
        return max(0.0, gathers[0] - before) + sum(
            max(0.0, t - dot) for t, dot in zip(gathers[1:], dots[:-1], strict=True)
        )
    fixed = all_gather_seconds(work.chip, work.slice_sides(gather.axes), 0.0)
    arrivals = (_queued if work.chip.sparse_cores_queue else _sharing)(gathers, fixed)
    now, exposed = before, 0.0
    for arrival, dot in zip(arrivals, dots, strict=True):
        exposed += max(0.0, arrival - now)
        now = max(now, arrival) + dot
    return exposed


def _queued(alone: Sequence[float], fixed: float) -> list[float]:
    """When each of some collectives arrives that start at once and are sent one after another.

    Args:
      alone: seconds of each by itself.
      fixed: seconds of each in which it sends nothing, and the next one does.
    """
    return [fixed + sent for sent in itertools.accumulate(t - fixed for t in alone)]


def _sharing(alone: Sequence[float], fixed: float) -> list[float]:
    """When each of some collectives ends that start at once and share the links in equal parts.

    Args:
      alone: seconds of each by itself.
      fixed: seconds of each in which it sends nothing, during which the others do.
    """
    sent = last = 0.0
    ends = [0.0] * len(alone)
    for done, i in enumerate(sorted(range(len(alone)), key=alone.__getitem__)):
        sent += (len(alone) - done) * (alone[i] - fixed - last)
        last = alone[i] - fixed
        ends[i] = fixed + sent
    return ends


def _scatters_exposed(work: Workload, dots: list[float], scatters: list[float]) -> float:
    """Seconds for which dots wait for scatters that take longer than the dots that they overlap; those
    of the last chunk's last result are not counted."""
    count, late = work.rhs_count, 0.0
    for i, (t, dot) in enumerate(zip(scatters, dots, strict=True)):
        # The scatter of a result overlaps with the dot of the next one: of this chunk, or of the next.
        late += (count - 1) * max(0.0, t - dot / count)
        following = dots[i + 1] if i + 1 < len(dots) else 0.0
        late += max(0.0, t - following / count) if following else 0.0
    return late


def _exchange_seconds(work: Workload, collective: EinsumCollective, fraction: float = 1.0) -> float:
    """Seconds of the all-to-all of a chunk of one result."""
    sent = fraction * work.full_bytes(collective) / work.rhs_count
    return all_to_all_seconds(work.chip, work.slice_sides(collective.axes), sent)


def _exchange_pass_seconds(work: Workload, collective: EinsumCollective) -> float:
    """Seconds of the pass that adds up what arrives, and of moving blocks apart before it is sent, if
    they are not of the first dimension."""
    adding = pass_seconds(work, work.full_bytes(collective))
    return max(adding, move_seconds(work, collective, "exchange"))


def _own_shard_first(work: Workload, collective: EinsumCollective, schedule: Schedule) -> Estimate:
    """The cost where every shard of the gathered label is sliced into chunks.

    The first chunk's all-gather overlaps with the dot of the device's own shard, every other one with
    the dots of the chunk before; see `execution.own_shard_first`.
    """
    op = work.op
    n, sent = work.devices(collective), work.full_bytes(collective)
    fractions = chunk_fractions(schedule, work.sizes[collective.label] // n)
    # Each dot's columns are written into the result.
    written = COLUMN_PASSES * work.out_elements / n * op.dtype.itemsize * work.rhs_count
    steps = [dot_seconds(work, {collective.label: 1 / n}) + pass_seconds(work, written)]
    for fraction in fractions:
        dot = dot_seconds(work, {collective.label: fraction / n})
        steps.append((n - 1) * (dot + pass_seconds(work, fraction * written)))
    if len(fractions) > 1:
        # Each chunk is sliced from the shard.
        sliced = COLUMN_PASSES * sent / n
        steps = [
            step + pass_seconds(work, fraction * sliced)
            for step, fraction in zip(steps, [*fractions, 0.0], strict=True)
        ]
    sides = work.slice_sides(collective.axes)
    gathers = [all_gather_seconds(work.chip, sides, fraction * sent) for fraction in fractions]
    exposed = _gathers_exposed(work, gathers, steps[1:], before=steps[0])
    compute, communication = sum(steps), sum(gathers)
    if op.scatter is not None:
        scatter = work.rhs_count * _exchange_seconds(work, op.scatter)
        compute += _exchange_pass_seconds(work, op.scatter)
        communication += scatter
        exposed += max(0.0, scatter - work.overlap_seconds)
    return Estimate(
        schedule=schedule,
        compute=compute,
        communication=communication,
        exposed=exposed,
        memory=int(sent),
    )
