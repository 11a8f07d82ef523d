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
TILE, TILE_ROWS = 128, 8
# A TPU scatters the last dimension as it stands where a row of a block has a multiple of these bytes:
# seen in bf16 on v4, v5p, v5e and v6e, blocks of 128 to 5760 columns, and in f32 on v4.
ROW_BYTES = 512
# Times that a TPU reads and writes an operand that an all-reduce gathers: zeros are written first.
REDUCED_PASSES = 2.45
# Likewise of an operand that is gathered in strands over several axes, by lanes that cut them: seen
# in gathers over three axes (v4: 1.7, v5p: 3) and over two lines (v5e: 2.1, v6e: 2.8).
CUT_PASSES = 2.0
# Likewise of a result whose columns are made in strands, where one strand writes and reads it once:
# seen on v4, v5p, v5e and v6e, 10 to 17.
STRANDS_PASSES = 12.0
# Devices up to which a block for each of them is sent on its way at once.
STRAIGHT = 16


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


def dot_seconds(problem: Problem, waits: float = 0.0, **shrunk: float) -> float:
    """One dot, of all right operands, with some labels made smaller by a factor.

    `waits` is the share of its arithmetic that it stands still for an operand.
    """
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
    summed = any(part < 1 and c not in op.out for c, part in shrunk.items())
    if summed and 4 * out > chip.sum_bytes:
        # A part of the sum: what was summed before is read and written in 32 bits.
        computed = max(computed, 8 * out / chip.hbm_bandwidth)
    fill = chip.dot_fill_seconds + sizes[1] / chip.dot_fill_bandwidth
    seconds = max(computed + fill, streamed + beside + chip.dot_fill_seconds)
    return (seconds + waits * flops / peak) * problem.rights


def _whole_dot(problem: Problem) -> float:
    """The dot of the whole operands; what was gathered is on the chip already."""
    return dot_seconds(problem, problem.chip.remote_dot_waits if problem.op.gather is None else 0)


def _tiles(size: float) -> float:
    return -(-size // TILE) * TILE if size >= TILE else size


def pass_seconds(problem: Problem, moved: float) -> float:
    """A pass over memory that reads and writes `moved` bytes in all."""
    return moved / problem.chip.vector_bandwidth


def _wraps(problem: Problem, axis: str) -> bool:
    return problem.chip.wraps(problem.axis_sizes[axis])


def hop_seconds(problem: Problem, axis: str, sent: float) -> float:
    """One hop of a ring, every device sending `sent` bytes one way; ends of a line are far apart."""
    hops = 1 if _wraps(problem, axis) else problem.axis_sizes[axis] - 1
    return sent / problem.chip.link_bandwidth + hops * problem.chip.hop_seconds


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
    """lax.psum_scatter as compiled: of lanes, over one axis, mostly an all-reduce and a slice."""
    seconds = blocking_seconds(problem, end.axes, problem.sent(end))
    of_lanes = _of_lanes(problem, end) and len(end.axes) == 1 and not problem.chip.turns_lanes
    return 2 * seconds if of_lanes or _parts_tiles(problem, end) else seconds


def _gather_blocking(problem: Problem, end: End) -> float:
    """lax.all_gather as compiled; see `_gather_reduces`."""
    seconds = blocking_seconds(problem, end.axes, problem.sent(end))
    return 2 * seconds if _gather_reduces(problem, end) else seconds


def _gather_reduces(problem: Problem, end: End) -> bool:
    """Whether a TPU gathers lanes by an all-reduce: parts of tiles both ways, or of three axes."""
    op = problem.op
    rows = problem.elements(op.lhs) / problem.sizes[end.label]
    parts = rows < TILE_ROWS and problem.sizes[end.label] / problem.n(end) % TILE != 0
    lanes = problem.chip.torus_dims > 0 and op.lhs[-1] == end.label
    return lanes and (parts or len(end.axes) > 2)


def _parts_tiles(problem: Problem, end: End) -> bool:
    """Whether blocks of rows are no whole tiles: a TPU then makes an all-reduce of their scatter."""
    out, n = problem.op.out, problem.n(end)
    leads = out[0] == end.label and len(out) > 1 and n > 1 and problem.chip.torus_dims > 0
    rows = problem.elements(out[:-1]) // n
    return leads and rows % TILE_ROWS != 0


def _of_lanes(problem: Problem, end: End) -> bool:
    """Whether a TPU must move lanes of the result, its last dimension, to scatter them."""
    op, n = problem.op, problem.n(end)
    moved = problem.sizes[end.label] / n * op.sum_wire.itemsize % ROW_BYTES != 0
    return problem.chip.torus_dims > 0 and op.out[-1] == end.label and n > 1 and moved


def _scatter_passes(problem: Problem, end: End, part: float = 1) -> float:
    """What a scatter of lanes by lax costs beside the links: blocks are cut out, or moved apart."""
    if not _of_lanes(problem, end):
        return 0.0
    whole_tiles = problem.sizes[end.label] / problem.n(end) % TILE == 0
    aligned, unaligned, _ = problem.chip.scatter_passes
    passes = aligned if whole_tiles else unaligned
    seconds = pass_seconds(problem, part * passes * problem.sent(end))
    return seconds + problem.chip.scatter_fill_seconds * problem.rights


def _ends(problem: Problem) -> tuple[float, float]:
    """Seconds of the gather and of the scatter (or all-reduce) when nothing hides them."""
    op = problem.op
    gather = 0.0
    if op.gather is not None:
        gather = _gather_blocking(problem, op.gather)
    scatter = _scatter_blocking(problem, op.scatter) if op.scatter is not None else 0.0
    if op.reduce:
        whole = problem.elements(op.out) * op.sum_wire.itemsize * problem.rights
        scatter += 2 * blocking_seconds(problem, op.reduce, whole)
    return gather, scatter


def estimate(problem: Problem, schedule: Schedule) -> Estimate:
    """The cost of `problem` under `schedule`."""
    if schedule.kind == "blocking":
        gather, scatter = _ends(problem)
        sent, compute = gather + scatter, _whole_dot(problem)
        if problem.op.scatter is not None:
            compute += _scatter_passes(problem, problem.op.scatter)
        if problem.op.gather is not None and _gather_reduces(problem, problem.op.gather):
            compute += pass_seconds(problem, REDUCED_PASSES * problem.sent(problem.op.gather))
        return Estimate(schedule, compute, sent, sent, _whole_bytes(problem))
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
    if count == 1 and op.scatter is not None:
        return _whole(problem, op.scatter, schedule)
    gather, scatter = (
        blocking_seconds(problem, end.axes, problem.sent(end)) if end is not None else 0.0
        for end in (op.gather, op.scatter)
    )
    scatter += _ends(problem)[1] if op.reduce else 0.0
    passes = 0.0
    if op.gather is not None:
        passes += 2 * problem.sent(op.gather)
    if op.scatter is not None:
        passes += 3 * problem.sent(op.scatter)
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


def _whole(problem: Problem, end: End, schedule: Schedule) -> Estimate:
    """One chunk: lax's collectives, but results before the last are scattered beside dots."""
    op, n = problem.op, problem.n(end)
    gather, _ = _ends(problem)
    each = problem.sent(end) / problem.rights
    scatter = blocking_seconds(problem, end.axes, each)
    # The blocks of a dimension that is not the first must be moved apart, by the dot and after it.
    passes, apart = 2 * each * problem.rights * _parts_tiles(problem, end), 0.0
    if op.out[0] != end.label:
        passes = problem.chip.scatter_passes[2] * each * problem.rights
        apart = problem.chip.scatter_fill_seconds * problem.rights
    dots, straight, exposed = _whole_dot(problem), 0.0, scatter
    if op.form == "each" and n <= STRAIGHT:
        # Half of all blocks go half way round: each link carries a third more than in a ring.
        straight = scatter * 4 / 3
        late = max(0.0, straight - dots / problem.rights)
        exposed += (problem.rights - 1) * late
        passes += (problem.rights - 1) * each * (2 * (n - 1) / n + 1)
    else:
        exposed *= problem.rights
    busy = gather + scatter + (problem.rights - 1) * max(straight, scatter)
    compute = dots + apart + pass_seconds(problem, passes)
    return Estimate(schedule, compute, busy, gather + exposed, _whole_bytes(problem))


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
    if strands > 1:
        # Strands gather the other axes on the links of all of them.
        inner *= (strands - 1) / strands
    shard = problem.sizes[turning.label] // n
    found = lanes(around, schedule.direction, max(2, shard))
    span = max(2, shard)
    time, links = _turns(problem, turning, found, span, whole / around / strands, strands)
    compute = _dots(problem, turning, found, span)
    exposed = max(0.0, time - compute) + inner + other
    compute += _sliced_bytes(problem, turning, around)
    block = problem.elements(op.out) / around * problem.rights
    memory = 2 * whole / around
    if turning is op.scatter:
        compute += _additions(problem, found, span, block)
        if len(turning.axes) > 1:
            compute += _scatter_passes(problem, turning, 1 / around)
        memory += 4 * block
    elif turning.label not in op.out:
        memory += 4 * block * around
    else:
        # Every piece of the result is put into its place, and those of strands before the last stage.
        moved = 2.0 * around * block * op.dtype.itemsize
        if strands > 1:
            # Seen with int8 weights too: these pieces are no wider than lhs.
            moved = STRANDS_PASSES * around * block * min(op.dtype.itemsize, problem.lhs_bytes)
            cut = any(lane.size < span for lane in found)
            moved += 2 * whole / around + (CUT_PASSES * whole if cut else 0.0)
        compute += pass_seconds(problem, moved)
    return Estimate(schedule, compute, links + inner + other, exposed, int(memory))


def _additions(problem: Problem, found: Sequence[Lane], span: int, block: float) -> float:
    """What a scatter ring adds: in the dots' own loops, if it is there before the dot and whole.

    The last sum of a single result lands after its own dot, those of a single lane after every dot;
    they are added in passes, of a sum in 32 bits and two on the wire.
    """
    wire = problem.op.sum_wire.itemsize
    adds = sum(lane.hops * lane.size / span for lane in found)
    apart = 0.0
    if any(lane.size < span for lane in found):
        apart = adds
    elif problem.op.form == "sum" or problem.rights == 1:
        apart = adds if len(found) == 1 else sum(lane.size / span for lane in found)
    fused = (adds - apart) * block * wire / problem.chip.hbm_bandwidth
    return fused + apart * pass_seconds(problem, block * (4 + 2 * wire))


def _sliced_bytes(problem: Problem, turning: End, around: int) -> float:
    """What the TPU compiler spends on slices of an int8 operand that it copies before their dots.

    Seen in its schedules: rows are always copied; columns, on some chips, where a dot of them is
    shorter than a pass over the operand.
    """
    op, chip = problem.op, problem.chip
    if problem.rhs_bytes > 1 or turning.label not in op.rhs:
        return 0.0
    size = problem.elements(op.rhs) * problem.rights
    if turning.label == op.rhs[-1]:
        dot = dot_seconds(problem, **{turning.label: 1 / around})
        if not chip.copies_int8_columns or dot > pass_seconds(problem, 2 * size):
            return 0.0
    return pass_seconds(problem, chip.int8_slice_passes * size)


def _hop_dot(problem: Problem, turning: End, part: float) -> float:
    """The dot of a part of a shard that came, or that will leave."""
    seconds = dot_seconds(problem, **{turning.label: part})
    whole = 4 * problem.elements(problem.op.out) * problem.rights
    if turning.label in problem.op.out or whole / problem.rights <= problem.chip.sum_bytes:
        return seconds
    return seconds + whole / problem.chip.sum_bandwidth


def _dots(problem: Problem, turning: End, found: Sequence[Lane], span: int) -> float:
    """The dots of every turn and of the own block."""
    around = problem.axis_sizes[turning.axes[0]]
    seconds = dot_seconds(problem, **{turning.label: 1 / around})
    for lane in found:
        part = lane.size / span / around
        seconds += lane.hops * _hop_dot(problem, turning, part)
    return seconds


def _turns(
    problem: Problem, turning: End, found: Sequence[Lane], span: int, sent: float, strands: int
) -> tuple[float, float]:
    """Seconds of a ring with its dots, hop by hop, and seconds that its links are busy.

    The TPU compiler starts a hop one dot before it must land, so that one dot hides it, however many
    there are between two hops.
    """
    axis = turning.axes[0]
    around = problem.axis_sizes[axis]
    last = max((lane.hops for lane in found), default=0)
    one = dot_seconds(problem, **{turning.label: 1 / around}) / strands
    time, busy = one * strands, 0.0
    for hop in range(1, last + 1):
        active = [lane for lane in found if lane.hops >= hop]
        parts = [sent * lane.size / span for lane in active]
        if _wraps(problem, axis):
            parts = [max(parts)]
        elif turning is problem.op.gather:
            # Each lane of a line takes links both ways, and all leave at once.
            parts = [sum(parts)]
        hops = [hop_seconds(problem, axis, part) for part in parts]
        time += sum(max(0.0, each - one) for each in hops)
        busy += sum(hops)
        dots = [_hop_dot(problem, turning, lane.size / span / around) for lane in active]
        time, one = time + sum(dots), max(dots) / strands
    return time, busy
