"""The choice of a schedule by cost: what "auto" means, and its reasons as a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..chips.chip import Chip
from ..chips.compile_context import traced_chip, with_options
from ..chips.names import as_chip
from ..ops.einsum_op import End, Operation
from ..ops.schedule import Schedule, as_schedule
from ..spec import sizes as checks
from ..text.showing import Shown
from .candidates import candidates, cuttable, length
from .estimate import Estimate, Problem, estimate

# A predicted gain that is smaller than this is within the model's error, and blocking is kept.
WORTHWHILE = 0.015
# Devices up to which "auto" makes an all-to-all of a permute for each of them, of as many pairs.
STRAIGHT_AT_MOST = 64


class ShapedArray(Protocol):
    """Anything with a shape and a dtype: an array, or a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


@dataclasses.dataclass(frozen=True)
class Choice(Shown):
    """Schedules of one einsum, best first, with their predicted costs; prints as a table.

    Attributes:
      what: the einsum and its collectives, in words.
      chip: whose costs these are.
      rows: an `Estimate` for each schedule, the chosen one first, the others by their seconds.
    """

    what: str
    chip: str
    rows: tuple[Estimate, ...]

    @property
    def schedule(self) -> Schedule:
        """The chosen schedule."""
        return self.rows[0].schedule

    @property
    def reason(self) -> str:
        """Why it was chosen, in a sentence."""
        best = self.rows[0]
        blocking = next(row for row in self.rows if row.schedule.kind == "blocking")
        fastest = min(self.rows, key=lambda row: row.seconds)
        if best is blocking and fastest is blocking:
            return "nothing hides more communication than its extra dots and passes cost"
        gain = blocking.seconds / fastest.seconds
        if best is blocking:
            return (
                f"{fastest.schedule} would gain {gain - 1:.1%}, less than the {WORTHWHILE:.1%} that "
                "is worth leaving blocking for"
            )
        return (
            f"{gain:.2f} times faster than blocking: it leaves {best.exposed * 1e6:.1f} of "
            f"{blocking.exposed * 1e6:.1f} us exposed"
        )

    def __repr__(self) -> str:
        best = self.rows[0]
        return (
            f"Choice({best.schedule}, {best.seconds * 1e6:.1f} us, of {len(self.rows)} schedules of "
            f"{self.what} on {self.chip})"
        )

    def __str__(self) -> str:
        width = max(len(str(row.schedule)) for row in self.rows)
        lines = [
            f"{self.what} on {self.chip}, predicted by the cost model",
            f"{'schedule':{width}}  total us  compute us  communication us  exposed us  extra MB",
        ]
        for row in self.rows:
            lines.append(
                f"{row.schedule!s:{width}}  {row.seconds * 1e6:8.1f}  {row.compute * 1e6:10.1f}  "
                f"{row.communication * 1e6:16.1f}  {row.exposed * 1e6:10.1f}  "
                f"{row.memory / 1e6:8.2f}"
            )
        return "\n".join([*lines, f"chosen: {self.schedule}, since {self.reason}"])


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
      axis_sizes: sizes of these mesh axes.
      chip: every chip of the mesh.
      result_dtype: of every result.
      wire_dtype: of partial sums while a reduce-scatter sends them.
      overlap_seconds: seconds of independent compute that can overlap the reduce-scatter, or the
        all-gather if there is no reduce-scatter.

    Returns:
      The candidates with their estimates, the chosen schedule first.
    """
    operands, out = spec.split("->")
    left, right = operands.split(",")
    op = Operation(
        form="each",
        lhs=left,
        rhs=right,
        out=out,
        gather=None if gather is None else End(*gather),
        scatter=None if scatter is None else End(*scatter),
        reduce=(),
        schedule=Schedule("blocking"),
        precision=None,
        accumulator=jnp.dtype(jnp.float32),
        dtype=jnp.dtype(result_dtype),
        sum_wire=jnp.dtype(wire_dtype),
    )
    return rank(op, [lhs, *rhs], chip, axis_sizes, overlap_seconds)


def rank(
    op: Operation,
    values: Sequence[Any],
    chip: Chip,
    axes: Mapping[str, int],
    overlap_seconds: float = 0.0,
) -> Choice:
    """All candidates for an operation on these local operands, ranked by cost."""
    problem = dataclasses.replace(_problem(op, values, chip, axes), overlap_seconds=overlap_seconds)
    rows = [estimate(problem, each) for each in candidates(problem)]
    rows.sort(key=lambda row: row.seconds)
    blocking = next(row for row in rows if row.schedule.kind == "blocking")
    if rows[0].seconds * (1 + WORTHWHILE) > blocking.seconds:
        rows.remove(blocking)
        rows.insert(0, blocking)
    ends = [
        f"{word} {end.label!r} over {end.axes}"
        for word, end in (("gather", op.gather), ("scatter", op.scatter))
        if end is not None
    ]
    ends += [f"all-reduce over {op.reduce}"] if op.reduce else []
    shapes = " x ".join(str(tuple(x.shape)) for x in values)
    return Choice(
        f"{op.lhs},{op.rhs}->{op.out}, {shapes}, {', '.join(ends)}", chip.name, tuple(rows)
    )


def _problem(op: Operation, values: Sequence[Any], chip: Chip, axes: Mapping[str, int]) -> Problem:
    lhs, rhs = values[0], values[1]
    if op.form == "each":
        rhs = max(values[1:], key=lambda x: math.prod(x.shape))
    # A label of both operands is whole in the rhs where the lhs holds a shard of it.
    sizes = dict(zip(op.lhs, lhs.shape, strict=True)) | dict(zip(op.rhs, rhs.shape, strict=True))
    if op.gather is not None and op.gather.label not in op.rhs:
        sizes[op.gather.label] *= math.prod(axes[axis] for axis in op.gather.axes)
    # Operands of other widths count as so much of the widest one.
    rights = sum(math.prod(x.shape) for x in values[1:]) / max(math.prod(rhs.shape), 1)
    return Problem(op, sizes, lhs.dtype.itemsize, rhs.dtype.itemsize, rights, axes, chip)


def resolve(
    op: Operation,
    values: Sequence[Any],
    schedule: str | Schedule,
    chip: Chip | str | None,
    overlap_seconds: float = 0.0,
) -> Schedule:
    """The schedule that was asked for, complete; for "auto", the one of `rank`."""
    given, named = as_schedule(schedule), None if chip is None else as_chip(chip)
    axes = {axis: lax.axis_size(axis) for axis in op.axes}
    symbolic = checks.symbolic(*(size for x in values for size in x.shape))
    if given is None:
        # Sizes that are no numbers have no costs.
        if symbolic:
            return Schedule("blocking")
        return rank(op, values, chip_of(named), axes, overlap_seconds).schedule
    if given.kind == "chunked" and len(given.shares) > 1 and given.label is None:
        if symbolic:
            raise ValueError(
                f"schedule {str(given)!r} cuts a label into chunks, and of shapes "
                f"{[tuple(x.shape) for x in values]} not all sizes are numbers; choose 'auto' or "
                "'blocking'"
            )
        problem = _problem(op, values, chip_of(named), axes)
        lengths = {label: length(problem, label) for label in cuttable(op, given.direction)}
        if lengths and isinstance(schedule, str):
            # By name, it is as many chunks as there can be.
            most = max(1, *lengths.values())
            given = dataclasses.replace(given, chunks=min(most, len(given.shares)))
        if len(given.shares) == 1:
            return given
        labels = [label for label, size in lengths.items() if size >= sum(given.shares)]
        cut = [dataclasses.replace(given, label=c) for c in labels]
        return min(cut, key=lambda each: estimate(problem, each).seconds, default=given)
    return given


def closed_axes(op: Operation, schedule: Schedule, chip: Chip | str | None) -> tuple[str, ...]:
    """Of the axes at the operation's ends, those that close into rings, where a ring goes through all
    devices of several."""
    if schedule.kind != "ring" or all(len(end.axes) == 1 for end in op.ends):
        return ()
    wraps = chip_of(chip).wraps
    return tuple(a for end in op.ends for a in end.axes if wraps(lax.axis_size(a)))


def resolve_collective(
    kind: str,
    axes: Sequence[str],
    schedule: str | Schedule,
    chip: Chip | str | None,
    shape: Sequence[Any],
) -> Schedule:
    """The schedule of a collective by itself: what can run beside other work, for "auto".

    `kind` is as in `Chip.asynchronous`.

    Raises:
      ValueError: a schedule that cuts einsums into chunks.
    """
    given, named = as_schedule(schedule), None if chip is None else as_chip(chip)
    if given is not None:
        if given.kind == "chunked" and (given.direction != "async" or len(given.shares) > 1):
            raise ValueError(
                f"schedule={schedule!r} cuts an einsum into chunks, and a collective has none; "
                "choose 'auto', 'blocking', 'unidirectional', 'bidirectional', 'latency' or 'async'"
            )
        return given
    chip = chip_of(named)
    n = math.prod(lax.axis_size(axis) for axis in axes)
    if n == 1 or (kind == "all_to_all" and n > STRAIGHT_AT_MOST) or checks.symbolic(*shape):
        return Schedule("blocking")
    if kind in chip.asynchronous or not chip.torus_dims:
        return Schedule("blocking")
    return Schedule("ring", "latency")


def chip_of(chip: Chip | str | None) -> Chip:
    """The chip that is named, or else that of the mesh in scope; as its compiler serves what is being
    traced.

    Raises:
      ValueError: no chip has that name.
    """
    return traced_chip() if chip is None else with_options(as_chip(chip))
