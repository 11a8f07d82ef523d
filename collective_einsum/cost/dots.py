"""What the parts of an operation cost that no link takes part in: dots, and passes over memory.

They follow the compiler's own accounts, of which `Chip` holds the constants. All of it is predicted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..chips.chip import Chip
from ..chips.tiles import MATRIX_TILE
from ..ops.schedule import Schedule
from ..rings import slicing as blocks

if TYPE_CHECKING:
    from ..ops.einsum_op import End, Operation


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The predicted cost of an operation under one schedule, on one device.

    Attributes:
      schedule: the schedule.
      compute: seconds of dots and of passes over memory.
      communication: seconds that the links are busy.
      exposed: seconds of communication with no computation beside it.
      memory: bytes beside operands and results.
    """

    schedule: Schedule
    compute: float
    communication: float
    exposed: float
    memory: int

    @property
    def seconds(self) -> float:
        """The whole."""
        return self.compute + self.exposed


@dataclasses.dataclass(frozen=True)
class Problem:
    """An operation with everything that its cost depends on."""

    op: Operation
    sizes: Mapping[str, int]
    lhs_bytes: int
    rhs_bytes: int
    rights: float
    axis_sizes: Mapping[str, int]
    chip: Chip
    overlap_seconds: float = 0.0
    _dots: dict[Any, float] = dataclasses.field(default_factory=dict, repr=False)

    def elements(self, labels: str, **shrunk: float) -> float:
        """How many elements an array of these labels has, some of its labels made smaller."""
        return math.prod(self.sizes[c] * shrunk.get(c, 1) for c in labels)

    def sides(self, axes: Sequence[str]) -> list[int]:
        """The sizes of these mesh axes."""
        return [self.axis_sizes[axis] for axis in axes]

    def n(self, end: End) -> int:
        """The number of devices of a collective."""
        return math.prod(self.sides(end.axes))

    def sent(self, end: End) -> float:
        """Bytes of the whole, on one device, that a collective gathers or scatters."""
        if end is self.op.gather:
            return self.elements(self.op.lhs) * self.lhs_bytes
        return self.elements(self.op.out) * self.op.sum_wire.itemsize * self.rights


def dot_seconds(problem: Problem, waits: float = 0.0, **shrunk: float) -> float:
    """One dot, of all right operands, with some labels made smaller by a factor.

    `waits` is the share of its arithmetic that it stands still for an operand.
    """
    # Schedules are made of few different dots.
    key = (waits, *shrunk.items())
    if key not in problem._dots:
        problem._dots[key] = _dot_seconds(problem, waits, shrunk)
    return problem._dots[key]


def _dot_seconds(problem: Problem, waits: float, shrunk: Mapping[str, float]) -> float:
    op, chip = problem.op, problem.chip
    labels = "".join(dict.fromkeys(op.lhs + op.rhs))
    left = problem.elements(op.lhs, **shrunk)
    right = problem.elements(op.rhs, **shrunk)
    out = problem.elements(op.out, **shrunk)
    # The matrix unit works on whole tiles.
    whole = {
        c: _tiles(problem.sizes[c] * part) / max(1, problem.sizes[c]) for c, part in shrunk.items()
    }
    flops = 2 * problem.elements(labels, **whole)
    integers = min(problem.lhs_bytes, problem.rhs_bytes) == 1 and (
        max(problem.lhs_bytes, problem.rhs_bytes) > 1
    )
    seconds = matmul_seconds(
        chip,
        flops,
        sorted((left * problem.lhs_bytes, right * problem.rhs_bytes)),
        out * op.dtype.itemsize,
        widened=(right if problem.rhs_bytes == 1 else left) if integers else 0,
        # A part of the sum: what was summed before is read and written in 32 bits.
        summed_bytes=4 * out
        if any(part < 1 and c not in op.out for c, part in shrunk.items())
        else 0,
    )
    return (seconds + waits * flops / (chip.dot_efficiency * chip.bf16_flops)) * problem.rights


def matmul_seconds(
    chip: Chip,
    flops: float,
    operand_bytes: Sequence[float],
    result_bytes: float,
    *,
    widened: float = 0,
    summed_bytes: float = 0,
) -> float:
    """A matmul of operands of these bytes, the smaller first, of which `widened` elements are int8.

    `summed_bytes` are those in 32 bits of a sum that it adds to.
    """
    small, large = operand_bytes
    # The operand with more bytes is streamed from memory, the rest passes through on-chip memory.
    streamed = large / (chip.stream_efficiency * chip.hbm_bandwidth)
    overlap_seconds = (small + result_bytes) / chip.vector_bandwidth
    computed = flops / (chip.dot_efficiency * chip.bf16_flops)
    computed += 0.25 * widened / chip.int8_convert_rate
    if summed_bytes > chip.sum_bytes:
        computed = max(computed, 2 * summed_bytes / chip.hbm_bandwidth)
    fill = chip.dot_fill_seconds + large / chip.dot_fill_bandwidth
    return max(computed + fill, streamed + overlap_seconds + chip.dot_fill_seconds)


def whole_dot(problem: Problem) -> float:
    """The dot of the whole operands; what was gathered is on the chip already."""
    return dot_seconds(problem, problem.chip.remote_dot_waits if problem.op.gather is None else 0)


def _tiles(size: float) -> float:
    return -(-size // MATRIX_TILE) * MATRIX_TILE if size >= MATRIX_TILE else size


def pass_seconds(problem: Problem, moved: float) -> float:
    """A pass over memory that reads and writes `moved` bytes in all."""
    return moved / problem.chip.vector_bandwidth


def parts_of(schedule: Schedule, length: int) -> list[float]:
    """The chunks, as parts of a length that is cut between tiles."""
    return [size / length for _, size in blocks.pieces_of(length, schedule.shares, MATRIX_TILE)]


def dots_of_chunks(problem: Problem, schedule: Schedule) -> list[float]:
    """The dots of each chunk."""
    label = schedule.label
    if label is None:
        return [dot_seconds(problem)]
    return [
        dot_seconds(problem, **{label: part}) for part in parts_of(schedule, problem.sizes[label])
    ]


def whole_bytes(problem: Problem) -> int:
    """Bytes of the gathered operand and of the results before they are scattered."""
    op = problem.op
    gathered = problem.sent(op.gather) if op.gather is not None else 0
    partial = 0.0
    if op.scatter is not None:
        partial = problem.sent(op.scatter)
    return int(gathered + partial)
