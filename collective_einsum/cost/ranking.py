"""Ranks the schedules of one einsum by predicted cost. Traces nothing."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..chips.chip import Chip
from ..ops.einsum_op import EinsumCollective, Operation
from ..ops.schedule import Schedule
from .candidates import candidates
from .choice import WORTHWHILE, WORTHWHILE_WIDENED, Choice
from .estimate import estimate
from .workload import Estimate, ShapedArray, Workload, workload

# Schedules whose predicted seconds are within this ratio are as fast as one another.
_AS_FAST = 1.001


def rank_einsum(
    spec: str,
    lhs: ShapedArray,
    rhs: Sequence[ShapedArray],
    *,
    gather: tuple[str, tuple[str, ...]] | None = None,
    scatter: tuple[str, tuple[str, ...]] | None = None,
    axis_sizes: Mapping[str, int],
    chip: Chip,
    result_dtype: DTypeLike,
    wire_dtype: DTypeLike,
    overlap_seconds: float = 0.0,
    folded: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Choice:
    """Ranks the schedules of an einsum with collectives by predicted cost; traces nothing.

    `collective_einsum.choose_schedule` does it for arguments as users write them, with checks and
    defaults; this function takes them complete, and costs microseconds.

    Args:
      spec: such as "me,ef->mf", of single letters.
      lhs: shape and dtype of the local shard.
      rhs: those of each right operand; all have the labels that `spec` gives the right operand.
      gather: the label of lhs that is gathered before the einsum, and the mesh axes of the
        all-gather.
      scatter: the label of the result that is scattered after it, and the axes of the
        reduce-scatter.
      axis_sizes: sizes of the axes of the mesh, in its order; where a chip is one device, those of these
        collectives are enough.
      chip: every chip of the mesh.
      result_dtype: of every result.
      wire_dtype: of partial sums while a reduce-scatter sends them.
      overlap_seconds: seconds of independent compute that can overlap the reduce-scatter, or the
        all-gather if there is no reduce-scatter.
      folded: the mesh axes that lie along several sides of the slice, with these sides; see `on_slice`.

    Returns:
      The candidates with their estimates, the chosen schedule first.
    """
    operands, out = spec.split("->")
    left, right = operands.split(",")
    op = Operation(
        form="shared_lhs",
        lhs=left,
        rhs=right,
        out=out,
        gather=None if gather is None else EinsumCollective(label=gather[0], axes=gather[1]),
        scatter=None if scatter is None else EinsumCollective(label=scatter[0], axes=scatter[1]),
        reduce=(),
        schedule=Schedule("blocking"),
        precision=None,
        accumulator=jnp.dtype(jnp.float32),
        dtype=jnp.dtype(result_dtype),
        sum_wire=jnp.dtype(wire_dtype),
    )
    return rank(op, [lhs, *rhs], chip, axis_sizes, overlap_seconds, folded)


def rank(
    op: Operation,
    operands: Sequence[ShapedArray],
    chip: Chip,
    axis_sizes: Mapping[str, int],
    overlap_seconds: float = 0.0,
    folded: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> Choice:
    """All candidates for an operation on these local operands, ranked by predicted cost; arguments as of
    `Workload`.

    A decoder has the same few einsums in every layer: each is ranked once.
    """
    shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in operands)
    sizes = tuple(axis_sizes.items())
    return _rank(op, shapes, chip, sizes, overlap_seconds, tuple(folded.items()))


@functools.lru_cache(maxsize=1024)
def _rank(
    op: Operation,
    operands: tuple[jax.ShapeDtypeStruct, ...],
    chip: Chip,
    axis_sizes: tuple[tuple[str, int], ...],
    overlap_seconds: float,
    folded: tuple[tuple[str, tuple[int, ...]], ...],
) -> Choice:
    work = workload(op, operands, chip, dict(axis_sizes), overlap_seconds, folded)
    rows = [estimate(work, schedule) for schedule in candidates(work)]
    blocking = next(row for row in rows if row.schedule.kind == "blocking")
    better = [row for row in rows if row.seconds * (1 + _worthwhile(work, row)) <= blocking.seconds]
    least = min((row.seconds for row in better), default=0.0)
    # Of those as fast as the fastest, the first candidate.
    chosen = next((row for row in better if row.seconds <= _AS_FAST * least), blocking)
    rows.sort(key=lambda row: row.seconds)
    fastest = rows[0]
    rows.remove(chosen)
    rows.insert(0, chosen)
    collectives = [
        f"{word} {collective.label!r} over {collective.axes}"
        for word, collective in (("gather", op.gather), ("scatter", op.scatter))
        if collective is not None
    ]
    collectives += [f"all-reduce over {op.reduce}"] if op.reduce else []
    shapes = " x ".join(str(tuple(x.shape)) for x in operands)
    return Choice(
        einsum=f"{op.lhs},{op.rhs}->{op.out}, {shapes}, {', '.join(collectives)}",
        chip=chip.name,
        rows=tuple(rows),
        worthwhile=_worthwhile(work, fastest),
    )


def _worthwhile(work: Workload, row: Estimate) -> float:
    """The gain over "blocking" for which a schedule is chosen."""
    schedule, op = row.schedule, work.op
    whole = schedule.kind == "chunked" and schedule.chunks == 1
    ring = op.ring(schedule) if schedule.kind == "ring" else None
    # Dots of whole shards that add to a sum were observed, and the copy of the weights before them;
    # those of weights that are gathered read what arrived. What is gathered over several axes from
    # parts of tiles of lanes is laid out in columns, with which int8 dots were not observed.
    shards = ring is not None and ring is op.gather and schedule.direction != "bidirectional"
    if ring is not None and len(ring.axes) > 1 and work.gathers_parts_of_tiles:
        shards = False
    # So were dots of whole int8 weights, of which every chunk of a gather's rows has one.
    by_rows = op.gathers_alone and schedule.label is not None and schedule.label not in op.rhs
    if work.widened == op.rhs and by_rows:
        return WORTHWHILE
    if work.widened and not whole and not shards:
        return WORTHWHILE_WIDENED
    return WORTHWHILE
