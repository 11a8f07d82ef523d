"""What an operation costs on a chip under each schedule: seconds and bytes, from shapes alone.

Dots and passes over memory follow the compiler's own accounts, of which `Chip` holds the constants;
collectives follow "Efficiently Scaling Transformer Inference", appendix A.1. All of it is predicted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .chip import Chip
from .ring import Lane, lanes
from .schedule import Schedule

if TYPE_CHECKING:
    from .operation import End, Operation


# Rows and columns of a matrix unit.
TILE = 128


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
    rights: int
    axis_sizes: Mapping[str, int]
    chip: Chip

    def elements(self, labels: str, **shrunk: float) -> float:
        """How many elements an array of these labels has, some of its labels made smaller."""
        return math.prod(self.sizes[c] * shrunk.get(c, 1) for c in labels)

    def n(self, end: End) -> int:
        """The number of devices of a collective."""
        return math.prod(self.axis_sizes[axis] for axis in end.axes)

    def sent(self, end: End) -> float:
        """Bytes of the whole, on one device, that a collective gathers or scatters."""
        if end is self.op.gather:
            return self.elements(self.op.lhs) * self.lhs_bytes
        return self.elements(self.op.out) * self.op.sum_wire.itemsize * self.rights


def dot_seconds(problem: Problem, **shrunk: float) -> float:
    """One dot, of all right operands, with some labels made smaller by a factor."""
    op, chip = problem.op, problem.chip
    labels = "".join(dict.fromkeys(op.lhs + op.rhs))
    left = problem.elements(op.lhs, **shrunk)
    right = problem.elements(op.rhs, **shrunk)
    out = problem.elements(op.out, **shrunk)
    # The matrix unit works on whole tiles.
    whole = {c: _tiles(problem.sizes[c] * part) / problem.sizes[c] for c, part in shrunk.items()}
    flops = 2 * problem.elements(labels, **whole)
    # The operand with more bytes is streamed from memory, the rest passes through on-chip memory.
    sizes = sorted((left * problem.lhs_bytes, right * problem.rhs_bytes))
    streamed = sizes[1] / (chip.stream_efficiency * chip.hbm_bandwidth)
    beside = (sizes[0] + out * op.dtype.itemsize) / chip.vector_bandwidth
    peak = chip.dot_efficiency * chip.bf16_flops
    integers = min(problem.lhs_bytes, problem.rhs_bytes) == 1 and (
        max(problem.lhs_bytes, problem.rhs_bytes) > 1
    )
    widened = (right if problem.rhs_bytes == 1 else left) if integers else 0
    computed = flops / peak + 0.25 * widened / chip.int8_convert_rate
    if any(part < 1 and c not in op.out for c, part in shrunk.items()):
        # A part of the sum: what was summed before is read and written in 32 bits.
        computed = max(computed, 8 * out / chip.hbm_bandwidth)
    return (max(computed, streamed + beside) + chip.dot_fill_seconds) * problem.rights


def _tiles(size: float) -> float:
    return -(-size // TILE) * TILE if size >= TILE else size


def pass_seconds(problem: Problem, moved: float) -> float:
    """A pass over memory that reads and writes `moved` bytes in all."""
    return moved / problem.chip.vector_bandwidth


def _wraps(problem: Problem, axis: str) -> bool:
    return problem.chip.wraps(problem.axis_sizes[axis])


def hop_seconds(problem: Problem, axis: str, sent: float) -> float:
    """One hop of a ring, every device sending `sent` bytes one way; a line pays twice."""
    return sent / problem.chip.link_bandwidth * (1 if _wraps(problem, axis) else 2) + (
        problem.chip.hop_seconds
    )


def blocking_seconds(problem: Problem, axes: Sequence[str], whole: float) -> float:
    """An all-gather or reduce-scatter of `whole` bytes a device by lax, on all links of its axes."""
    chip = problem.chip
    n = math.prod(problem.axis_sizes[axis] for axis in axes)
    if n == 1:
        return 0.0
    links = sum(2 if _wraps(problem, a) else 1 for a in axes if problem.axis_sizes[a] > 1)
    hops = sum(
        problem.axis_sizes[a] // 2 if _wraps(problem, a) else problem.axis_sizes[a] - 1
        for a in axes
    )
    return whole * (n - 1) / n / (links * chip.link_bandwidth) + hops * chip.hop_seconds


def _scatter_blocking(problem: Problem, end: End) -> float:
    """lax.psum_scatter as compiled: over one axis of a TPU an all-reduce and a slice of it."""
    seconds = blocking_seconds(problem, end.axes, problem.sent(end))
    doubled = problem.chip.torus_dims > 0 and len(end.axes) == 1 and problem.n(end) > 1
    return 2 * seconds if doubled else seconds


def _ends(problem: Problem) -> tuple[float, float]:
    """Seconds of the gather and of the scatter (or all-reduce) when nothing hides them."""
    op = problem.op
    gather = 0.0
    if op.gather is not None:
        gather = blocking_seconds(problem, op.gather.axes, problem.sent(op.gather))
    scatter = _scatter_blocking(problem, op.scatter) if op.scatter is not None else 0.0
    if op.reduce:
        whole = problem.elements(op.out) * op.sum_wire.itemsize * problem.rights
        scatter += 2 * blocking_seconds(problem, op.reduce, whole)
    return gather, scatter


def estimate(problem: Problem, schedule: Schedule) -> Estimate:
    """The cost of `problem` under `schedule`."""
    if schedule.kind == "blocking":
        gather, scatter = _ends(problem)
        sent = gather + scatter
        return Estimate(schedule, dot_seconds(problem), sent, sent, _whole_bytes(problem))
    if schedule.kind == "chunked" or problem.op.reduce:
        return _chunked(problem, schedule)
    return _ring(problem, schedule)


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
    op, count = problem.op, schedule.chunks
    gather, scatter = _ends(problem)
    if op.scatter is not None:
        scatter = blocking_seconds(problem, op.scatter.axes, problem.sent(op.scatter))
    passes = 0.0
    if op.gather is not None and (count > 1 or op.scatter is None):
        passes += 2 * problem.sent(op.gather)
    if op.scatter is not None:
        passes += 2 * problem.sent(op.scatter) * (1 if count == 1 else 1.5)
    if op.reduce:
        passes += 5 * problem.elements(op.out) * op.sum_wire.itemsize * problem.rights
    cut = {schedule.label: 1 / count} if schedule.label is not None else {}
    dots = count * dot_seconds(problem, **cut)
    if count > 1:
        # The chunks of the result are put together, and a dot hides one hop of each collective.
        passes += 2 * problem.elements(op.out) * op.dtype.itemsize * problem.rights
    hops = max((sum(problem.axis_sizes[a] // 2 for a in axes) for axes in _all_axes(op)), default=1)
    hidden = min(gather + scatter, dots) * (count - 1) / count / max(1, hops)
    exposed = gather + scatter - hidden
    compute = dots + pass_seconds(problem, passes)
    return Estimate(schedule, compute, gather + scatter, exposed, _whole_bytes(problem))


def _all_axes(op: Operation) -> list[tuple[str, ...]]:
    """The axes of each collective."""
    ends = [end.axes for end in (op.gather, op.scatter) if end is not None]
    return [*ends, op.reduce] if op.reduce else ends


def _ring(problem: Problem, schedule: Schedule) -> Estimate:
    op = problem.op
    gather, scatter = _ends(problem)
    if op.gather is not None and (op.scatter is None or schedule.end == "gather"):
        turning, other = op.gather, scatter
    elif op.scatter is not None:
        turning, other = op.scatter, gather
    else:
        return estimate(problem, Schedule("blocking"))
    axis, n = turning.axes[0], problem.n(turning)
    around = problem.axis_sizes[axis]
    strands = 1
    if turning is op.gather and turning.label not in op.rhs:
        strands = len(turning.axes)
    whole = problem.sent(turning)
    inner = blocking_seconds(problem, turning.axes[1:], whole / around)
    shard = problem.sizes[turning.label] // n
    found = lanes(around, schedule.direction, max(2, shard))
    span = max(2, shard)
    time, links = _turns(problem, turning, found, span, whole / around / strands)
    compute = _dots(problem, turning, found, span)
    exposed = max(0.0, time - compute) + inner + other
    compute += _sliced_bytes(problem, turning, around)
    block = problem.elements(op.out) / around * problem.rights
    memory = 2 * whole / around
    if turning is op.scatter:
        # Each hop adds what arrived in a pass of its own: a sum in 32 bits, two on the wire.
        adds = sum(lane.hops * lane.size / span for lane in found)
        compute += adds * pass_seconds(problem, block * (4 + 2 * op.sum_wire.itemsize))
        memory += 4 * block
    elif turning.label not in op.out:
        memory += 4 * block * around
    elif strands > 1:
        # Pieces of shards are put together before the last stage, and in the result.
        compute += pass_seconds(
            problem, 2 * whole / around + 2 * around * block * op.dtype.itemsize
        )
    return Estimate(schedule, compute, links + inner + other, exposed, int(memory))


def _sliced_bytes(problem: Problem, turning: End, around: int) -> float:
    """What the TPU compiler spends on slices of an int8 operand that it copies before their dots.

    Seen in its schedules: rows are always copied; columns where a dot of them is shorter than a pass
    over the operand.
    """
    op = problem.op
    if problem.rhs_bytes > 1 or turning.label not in op.rhs or not problem.chip.torus_dims:
        return 0.0
    copied = pass_seconds(problem, 2 * problem.elements(op.rhs) * problem.rights)
    if turning.label == op.rhs[-1] and dot_seconds(problem, **{turning.label: 1 / around}) > copied:
        return 0.0
    return 2 * copied


def _dots(problem: Problem, turning: End, found: Sequence[Lane], span: int) -> float:
    """The dots of every turn and of the own block."""
    around = problem.axis_sizes[turning.axes[0]]
    seconds = dot_seconds(problem, **{turning.label: 1 / around})
    for lane in found:
        part = lane.size / span / around
        seconds += lane.hops * dot_seconds(problem, **{turning.label: part})
    return seconds


def _turns(
    problem: Problem, turning: End, found: Sequence[Lane], span: int, sent: float
) -> tuple[float, float]:
    """Seconds of a ring with its dots, hop by hop, and seconds that its links are busy."""
    axis = turning.axes[0]
    around = problem.axis_sizes[axis]
    last = max((lane.hops for lane in found), default=0)
    own = dot_seconds(problem, **{turning.label: 1 / around})
    time, busy = 0.0, 0.0
    beside = own
    for hop in range(1, last + 1):
        active = [lane for lane in found if lane.hops >= hop]
        hops = max(hop_seconds(problem, axis, sent * lane.size / span) for lane in active)
        time += max(beside, hops)
        busy += hops
        beside = sum(
            dot_seconds(problem, **{turning.label: lane.size / span / around}) for lane in active
        )
    return time + beside, busy
