"""Seconds of a dot, and of a pass over memory, by the TPU compiler's own account.

`Chip.observations` holds what the compiler makes of dots. Everything is predicted; nothing was timed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..chips.chip import Chip
from ..chips.observations import Scattered
from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import Operation
from ..ops.schedule import Schedule
from ..rings.slicing import chunk_spans
from .dot_factors import dot_factor
from .roofline import Dot, roofline_seconds
from .torus import offloads
from .workload import Fractions, Workload

# What gathers all of an einsum's left operand before its dot.
Gathered = Literal["", "by lax", "by permutes"]
# The fraction of vector memory that a ring's live sums of 32 bits share with all else. Rings of
# [512,4608] x [4608,18432] in 4 on v6e: one sum of 36 MiB stays; of two, one goes through HBM
# (libtpu 0.0.50.1).
SUMS_IN_VMEM = 0.5
# The fraction of on-chip memory up to which an operand that permutes gather stays there. [M, 18432] in
# one chunk, gathered over 4x4 on v6e and v5e: 37.7 MB of their 134 MB stay, 75.5 MB do not, and the dot
# takes 1.4 and 1.2 times as long as one whose operand is there (libtpu 0.0.50.1).
GATHERED_ON_CHIP = 0.5
_BF16 = jnp.dtype(jnp.bfloat16)
# Sizes of a large dot, beyond all that are observed.
_LARGE = 2**15


def matmul_seconds(chip: Chip, dot: Dot) -> float:
    """Seconds of one dot, operands and result in HBM.

    They are those of the chip's data sheet (`roofline.roofline_seconds`), times what was observed of its
    compiler for the nearest sizes and dtypes (`dot_factors.dot_factor`). Where the live sums are larger
    than `SUMS_IN_VMEM` allows, the dot reads the one that it adds to from HBM and writes it there.
    """
    seconds = dot_factor(chip, dot) * roofline_seconds(chip, dot)
    if dot.adds and dot.sums * dot.result_bytes > SUMS_IN_VMEM * chip.vmem_bytes:
        seconds = max(seconds, 2 * dot.result_bytes / chip.hbm_bandwidth + chip.hbm_fill_seconds)
    return seconds


def dot_flops(
    chip: Chip, lhs: DTypeLike, rhs: DTypeLike, precision: lax.PrecisionLike = None
) -> float:
    """Flop/s that large dots of these dtypes reach."""
    large = Dot(
        rows=_LARGE,
        contracted=_LARGE,
        columns=_LARGE,
        lhs=jnp.dtype(lhs),
        rhs=jnp.dtype(rhs),
        precision=precision,
    )
    return large.flops / matmul_seconds(chip, large)


def dot_seconds(
    work: Workload,
    fractions: Fractions | None = None,
    *,
    directions: int = 1,
    gathered: Gathered = "",
) -> float:
    """Seconds of one dot with every right operand.

    Args:
      work: the einsum.
      fractions: of the labels' sizes, for the dot of a chunk.
      directions: of the ring whose chunks these are: each has sums of its own.
      gathered: what gathers all of the left operand before the dot.
    """
    fractions = fractions or {}
    key = (directions, gathered, *fractions.items())
    if key not in work.dots:
        dot = dataclasses.replace(work_dot(work, fractions), sums=directions * work.rhs_count)
        behind = _behind(work, dot, gathered, in_chunks=bool(fractions))
        work.dots[key] = matmul_seconds(work.chip, behind) * work.rhs_count
    return work.dots[key]


def _behind(work: Workload, dot: Dot, gathered: Gathered, *, in_chunks: bool) -> Dot:
    """The dot behind an all-gather of the columns that it contracts, as such dots were observed; what
    permutes gather stays in on-chip memory unless it is too large. Not where SparseCores gather: layers
    and einsums of TPU7x were replayed nearer to dots whose operand was there (128 devices, libtpu
    0.0.50.1)."""
    op, gather, chip = work.op, work.op.gather, work.chip
    if gather is None or gather.label in op.out or dot.adds or dot.scattered:
        return dot
    if gathered == "by lax" and not offloads(chip, "all_gather"):
        return dataclasses.replace(dot, gathered=gather.label == op.lhs[-1])
    large = dot.lhs_bytes > GATHERED_ON_CHIP * chip.on_chip_bytes
    if in_chunks:
        # While a chunk is multiplied, the next one arrives; both lie beside the result, if that fits.
        result = work.result_bytes if work.result_bytes <= chip.on_chip_bytes else 0
        large = 2 * dot.lhs_bytes + result > chip.on_chip_bytes
    if gathered == "by permutes" and large and work.widened != op.rhs:
        # As the operand of one whose result is scattered, which nothing brought there either.
        return dataclasses.replace(dot, scattered="whole")
    return dot


def first_dot_seconds(work: Workload, fractions: Fractions, *, directions: int = 1) -> float:
    """Seconds of a ring's first dot with every right operand: it adds to nothing, and a scatter's waits
    for its left operand."""
    dot = work_dot(work, fractions)
    others = dot_seconds(work, fractions, directions=directions)
    if not dot.adds and dot.scattered != "ring":
        return others
    alone = dataclasses.replace(dot, adds=False, scattered="whole" if dot.scattered else "")
    seconds = matmul_seconds(work.chip, alone) * work.rhs_count
    if dot.scattered and work.widened:
        # It slices columns of int8 weights, as all dots of the ring do.
        return max(seconds, others)
    # Its sum may stay in on-chip memory, where the result of a dot alone goes to HBM.
    return min(seconds, others) if dot.adds else seconds


def work_dot(work: Workload, fractions: Fractions) -> Dot:
    """The dot of one right operand, of these fractions of the labels' sizes."""
    op = work.op
    # A chunk of a contraction reads and writes the sum so far, in 32 bits.
    adds = any(fraction < 1 and label not in op.out for label, fraction in fractions.items())
    left, right, out = set(op.lhs), set(op.rhs), set(op.out)

    def size(labels: set[str]) -> float:
        return work.elements("".join(sorted(labels)), fractions)

    # The matrix unit multiplies full tiles. The dots of int8 weights whose chunks are scattered take as
    # long as with an even number of them: [384, 18432] x [18432, 4608] on v6e 112 us, with 512 rows
    # 103 us, and 78 us behind a gather (libtpu 0.0.50.1).
    scattered = _scattered(op, fractions)
    tile = 2 * MATRIX_TILE if scattered == "whole" and work.widened == op.rhs else MATRIX_TILE
    padded = (
        _padded(length, tile) / max(length, 1)
        for label, fraction in fractions.items()
        for length in [work.sizes[label] * fraction]
    )
    return Dot(
        rows=size(left - right),
        contracted=size((left & right) - out),
        columns=size(right - left),
        batch=size(left & right & out),
        lhs=work.lhs_dtype,
        rhs=work.rhs_dtype,
        result=op.dtype,
        adds=adds,
        scattered=scattered,
        precision=op.precision,
        padding=math.prod(padded),
    )


def _scattered(op: Operation, fractions: Fractions) -> Scattered:
    if op.scatter is None:
        return ""
    if fractions.get(op.scatter.label, 1) < 1:
        return "ring"
    return "" if op.gather else "whole"


def _padded(size: float, tile: int) -> float:
    return -(-size // tile) * tile if size >= tile else size


def finishing_seconds(work: Workload, fractions: Fractions) -> float:
    """What the last dot of a contraction's chunks takes beyond the others, all right operands together:
    it writes the result instead of a sum of 32 bits that stays in on-chip memory."""
    last = work_dot(work, fractions)
    if not last.adds:
        return 0.0
    if min(last.lhs.itemsize, last.rhs.itemsize) < 2:
        # Whole, narrow weights are widened in other code: what a result of 16 bits takes is compared.
        last = dataclasses.replace(last, lhs=_BF16, rhs=_BF16)
    writes = dataclasses.replace(last, adds=False)
    longer = matmul_seconds(work.chip, writes) - matmul_seconds(work.chip, last)
    return max(0.0, longer) * work.rhs_count


def pass_seconds(work: Workload, moved: float) -> float:
    """Seconds of a memory pass that reads and writes `moved` bytes in all."""
    return moved / work.chip.vector_bandwidth


def slice_copy_seconds(work: Workload) -> float:
    """Seconds in which XLA:TPU copies the slices of int8 right operands before their dots, as it does
    with those of rows and, where their places are known when it compiles, of columns; 0.0 for wider
    operands. Seen in its schedules: two chunks of the columns of [4608, 4608] are copied out of a stack
    in 25.5 us on v4, and chunks of its rows in 23.8 us (by the bundles of libtpu 0.0.50.1; its estimates
    are 141 us)."""
    if work.rhs_dtype.itemsize > 1:
        return 0.0
    copied = work.elements(work.op.rhs) * work.rhs_count
    return work.chip.pass_seconds("copy int8", copied, work.rhs_count)


def chunk_fractions(schedule: Schedule, size: int) -> list[float]:
    """The chunks of a dimension of this size, as fractions of it; they begin and end between tiles."""
    return [length / size for _, length in chunk_spans(size, schedule.proportions, MATRIX_TILE)]


def chunk_dots(work: Workload, schedule: Schedule, *, gathered: Gathered = "") -> list[float]:
    """Seconds of the dot of each chunk; `gathered` as `dot_seconds` takes it."""
    label = schedule.label
    if label is None:
        return [dot_seconds(work, gathered=gathered)]
    fractions = chunk_fractions(schedule, work.sizes[label])
    return [dot_seconds(work, {label: fraction}, gathered=gathered) for fraction in fractions]
