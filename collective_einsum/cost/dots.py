"""Seconds of a dot, and of a pass over memory, by the TPU compiler's own account.

`Chip.observations` holds what the compiler makes of dots. Everything is predicted; nothing was timed.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..chips.chip import Chip
from ..chips.tiles import MATRIX_TILE
from ..ops.schedule import Schedule
from ..rings.slicing import chunk_spans
from .dot_factors import dot_factor
from .roofline import Dot, multiplying_seconds, roofline_seconds
from .workload import Fractions, Workload

# Sizes of a large dot, beyond all that are observed.
_LARGE = 2**15


def matmul_seconds(chip: Chip, dot: Dot) -> float:
    """Seconds of one dot, operands and result in HBM.

    They are those of the chip's data sheet (`roofline.roofline_seconds`), times what was observed of its
    compiler for the nearest sizes and dtypes (`dot_factors.dot_factor`). Where the live sums are larger
    than what stays in on-chip memory, the one that the dot adds to is read from HBM and written there
    meanwhile.
    """
    seconds = dot_factor(chip, dot) * roofline_seconds(chip, dot)
    if dot.adds and dot.sums * dot.result_bytes > chip.sum_bytes:
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
    waiting: float = 0.0,
    directions: int = 1,
) -> float:
    """Seconds of one dot with every right operand.

    Args:
      work: the einsum.
      fractions: of the labels' sizes, for the dot of a chunk.
      waiting: seconds that the dot waits for an operand, as a fraction of its arithmetic.
      directions: of the ring whose chunks these are: each has sums of its own.
    """
    fractions = fractions or {}
    key = (waiting, directions, *fractions.items())
    if key not in work.dots:
        work.dots[key] = _dot_seconds(work, fractions, waiting, directions)
    return work.dots[key]


def _dot_seconds(work: Workload, fractions: Fractions, waiting: float, directions: int) -> float:
    chip, dot = work.chip, work_dot(work, fractions)
    dot = dataclasses.replace(dot, sums=directions * work.rhs_count)
    seconds = matmul_seconds(chip, dot)
    if waiting:
        seconds += waiting * dot_factor(chip, dot) * multiplying_seconds(chip, dot)
    return seconds * work.rhs_count


def work_dot(work: Workload, fractions: Fractions) -> Dot:
    """The dot of one right operand, of these fractions of the labels' sizes."""
    op = work.op
    # A chunk of a contraction reads and writes the sum so far, in 32 bits.
    adds = any(fraction < 1 and label not in op.out for label, fraction in fractions.items())
    left, right, out = set(op.lhs), set(op.rhs), set(op.out)

    def size(labels: set[str]) -> float:
        return work.elements("".join(sorted(labels)), fractions)

    # The matrix unit multiplies full tiles.
    padded = (
        _padded(length) / max(length, 1)
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
        precision=op.precision,
        padding=math.prod(padded),
    )


def _padded(size: float) -> float:
    return -(-size // MATRIX_TILE) * MATRIX_TILE if size >= MATRIX_TILE else size


def finishing_seconds(work: Workload, fractions: Fractions) -> float:
    """What the last dot of a contraction's chunks takes beyond the others, all right operands together:
    it writes the result instead of a sum of 32 bits that stays in on-chip memory."""
    last = work_dot(work, fractions)
    if not last.adds:
        return 0.0
    writes = dataclasses.replace(last, adds=False)
    longer = matmul_seconds(work.chip, writes) - matmul_seconds(work.chip, last)
    return max(0.0, longer) * work.rhs_count


def full_dot_seconds(work: Workload) -> float:
    """Seconds of the dot of unsliced operands. A gathered operand is in on-chip memory already; for
    another one the dot waits (`Chip.remote_dot_waits`)."""
    return dot_seconds(work, waiting=work.chip.remote_dot_waits if work.op.gather is None else 0)


def pass_seconds(work: Workload, moved: float) -> float:
    """Seconds of a memory pass that reads and writes `moved` bytes in all."""
    return moved / work.chip.vector_bandwidth


def slice_copy_seconds(work: Workload) -> float:
    """Seconds in which XLA:TPU copies the slices of int8 right operands before their dots, as it does
    with those of rows and, where their places are known when it compiles, of columns; 0.0 for wider
    operands. Seen in its schedules: in a decode step of PaLM 540B at batch 256 on 64 chips of v4, chunks
    of columns copy each of the input matrices in 141 us (libtpu 0.0.50.1)."""
    if work.rhs_dtype.itemsize > 1:
        return 0.0
    passes = work.chip.int8_slice_passes
    return pass_seconds(work, passes * work.elements(work.op.rhs) * work.rhs_count)


def chunk_fractions(schedule: Schedule, size: int) -> list[float]:
    """The chunks of a dimension of this size, as fractions of it; they begin and end between tiles."""
    return [length / size for _, length in chunk_spans(size, schedule.proportions, MATRIX_TILE)]


def chunk_dots(work: Workload, schedule: Schedule) -> list[float]:
    """Seconds of the dot of each chunk."""
    label = schedule.label
    if label is None:
        return [dot_seconds(work)]
    fractions = chunk_fractions(schedule, work.sizes[label])
    return [dot_seconds(work, {label: fraction}) for fraction in fractions]
