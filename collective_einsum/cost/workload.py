"""One einsum with everything that its cost depends on, and the predicted cost of a schedule."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ..chips.chip import Chip
from ..chips.tiles import TILE_LANES
from ..ops.einsum_op import EinsumCollective, Operation
from ..ops.schedule import Schedule
from .torus import sides, slice_sides

# Fractions of the sizes of some labels: those of a chunk. A label that is missing keeps its size.
Fractions = Mapping[str, float]


class ShapedArray(Protocol):
    """Anything with a shape and a dtype: an array, or a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """The predicted cost of an einsum with its collectives under one schedule, on one device.

    Attributes:
      schedule: the schedule.
      compute: seconds of dots and of elementwise and copying passes over memory.
      communication: seconds during which the links send.
      exposed: seconds of communication that overlap with no computation.
      memory: bytes of temporary arrays: neither operands nor results.
    """

    schedule: Schedule
    compute: float
    communication: float
    exposed: float
    memory: int

    @property
    def seconds(self) -> float:
        """`compute + exposed`: the predicted time from start to end."""
        return self.compute + self.exposed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One einsum with everything that its cost depends on.

    Attributes:
      op: the einsum, its collectives, dtypes of results and partial sums, and precision.
      sizes: the size of each label on one device, after the all-gather and before the
        reduce-scatter.
      lhs_dtype: of the left operand.
      rhs_dtype: of the right operands.
      rhs_count: the number of right operands; one with fewer elements than the largest counts as a
        fraction.
      axis_sizes: sizes of the axes of the mesh, in its order; where a chip is one device, those that
        `op` names are enough.
      chip: every chip of the mesh.
      overlap_seconds: seconds of independent compute that can overlap the last collective.
      folded: the mesh axes that lie along several sides of the slice, with these sides.
    """

    op: Operation
    sizes: Mapping[str, int]
    lhs_dtype: np.dtype
    rhs_dtype: np.dtype
    rhs_count: float
    axis_sizes: Mapping[str, int]
    chip: Chip
    overlap_seconds: float = 0.0
    folded: tuple[tuple[str, tuple[int, ...]], ...] = ()
    # Seconds of the dots that were priced before: a schedule is made of few different ones.
    dots: dict[tuple[object, ...], float] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def elements(self, labels: str, fractions: Fractions | None = None) -> float:
        """The number of elements of an array with these labels, some of them made smaller."""
        fractions = fractions or {}
        return math.prod(self.sizes[label] * fractions.get(label, 1) for label in labels)

    def sides(self, axes: Sequence[str]) -> list[int]:
        """The sizes of these mesh axes, as `torus` takes them: what rings go round."""
        return sides(self.chip, self.axis_sizes, axes)

    def slice_sides(self, axes: Sequence[str]) -> list[int]:
        """The sides of the slice along these mesh axes, as `torus` takes them: all of them carry what
        lax's collectives send."""
        return slice_sides(self.chip, self.axis_sizes, axes, dict(self.folded))

    def devices(self, collective: EinsumCollective) -> int:
        """The number of devices of a collective."""
        return math.prod(self.sides(collective.axes))

    def full_bytes(self, collective: EinsumCollective) -> float:
        """Bytes, on one device, of the result of the all-gather, or of the operands of the
        reduce-scatter."""
        return self.lhs_bytes if collective is self.op.gather else self.sum_bytes

    @functools.cached_property
    def out_elements(self) -> float:
        """The number of elements of one result, before the reduce-scatter."""
        return self.elements(self.op.out)

    @functools.cached_property
    def lhs_bytes(self) -> float:
        """Bytes of the left operand, after the all-gather."""
        return self.elements(self.op.lhs) * self.lhs_dtype.itemsize

    @functools.cached_property
    def sum_bytes(self) -> float:
        """Bytes of the partial sums of all results, in the dtype in which they are sent."""
        return self.out_elements * self.op.sum_wire.itemsize * self.rhs_count

    @functools.cached_property
    def result_bytes(self) -> float:
        """Bytes of all results, before the reduce-scatter."""
        return self.out_elements * self.op.dtype.itemsize * self.rhs_count

    @functools.cached_property
    def temporary_bytes(self) -> int:
        """Bytes of the gathered operand and of the results before they are scattered."""
        return int(sum(self.full_bytes(collective) for collective in self.op.collectives))

    @property
    def gathers_parts_of_tiles(self) -> bool:
        """Whether the last label of lhs is gathered from shards that are no whole tiles of lanes."""
        gather = self.op.gather
        if gather is None or gather.label != self.op.lhs[-1]:
            return False
        return self.sizes[gather.label] // self.devices(gather) % TILE_LANES != 0

    @functools.cached_property
    def widened(self) -> str:
        """The labels of the operand of one byte an element that is converted to the wider dtype of the
        other for the dot; "" where both are that narrow, or none is."""
        narrow = [dtype.itemsize == 1 for dtype in (self.lhs_dtype, self.rhs_dtype)]
        if narrow[0] == narrow[1]:
            return ""
        return self.op.lhs if narrow[0] else self.op.rhs


def workload(
    op: Operation,
    operands: Sequence[ShapedArray],
    chip: Chip,
    axis_sizes: Mapping[str, int],
    overlap_seconds: float = 0.0,
    folded: tuple[tuple[str, tuple[int, ...]], ...] = (),
) -> Workload:
    """The workload of an operation on these local operands.

    A sum of several products is taken for one, of operands as long in a label that it sums over as
    those of all products together.
    """
    lefts, rights, _ = op.split(operands)
    lhs = lefts[0]
    rhs = max(rights, key=lambda x: math.prod(x.shape)) if op.form == "shared_lhs" else rights[0]
    # A label of both operands has its full size in rhs where lhs holds a shard of it.
    sizes = dict(zip(op.lhs, lhs.shape, strict=True)) | dict(zip(op.rhs, rhs.shape, strict=True))
    if op.gather is not None and op.gather.label not in op.rhs:
        sizes[op.gather.label] *= math.prod(axis_sizes[axis] for axis in op.gather.axes)
    elements = sum(math.prod(x.shape) for x in rights)
    if op.form == "sum":
        summed = [c for c in op.rhs if c not in op.out and sizes[c]]
        if summed:
            sizes[summed[-1]] = sizes[summed[-1]] * elements // max(math.prod(rhs.shape), 1)
        elements = math.prod(rhs.shape)
    return Workload(
        op=op,
        sizes=sizes,
        lhs_dtype=np.dtype(lhs.dtype),
        rhs_dtype=np.dtype(rhs.dtype),
        rhs_count=elements / max(math.prod(rhs.shape), 1),
        axis_sizes=axis_sizes,
        chip=chip,
        overlap_seconds=overlap_seconds,
        folded=folded,
    )
