"""Seconds of a dot, and of a pass over memory, by the TPU compiler's own account.

`collective_einsum.chips.Chip` holds the constants. Everything is predicted; nothing was timed.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..chips.chip import Chip
from ..chips.dot_rates import dot_flops
from ..chips.tiles import MATRIX_TILE
from ..ops.schedule import Schedule
from ..rings.slicing import chunk_spans
from .workload import Fractions, Workload


def matmul_seconds(
    chip: Chip,
    flops: float,
    operand_bytes: Sequence[float],
    result_bytes: float,
    *,
    lhs_dtype: DTypeLike = jnp.bfloat16,
    rhs_dtype: DTypeLike = jnp.bfloat16,
    precision: lax.PrecisionLike = None,
    widened: float = 0,
    summed_bytes: float = 0,
) -> float:
    """Seconds of one matmul, operands and result in HBM.

    It takes the longer of arithmetic, flops / (efficiency * peak), and of memory: the larger operand
    is streamed from HBM while it is multiplied, the other one and the result pass through on-chip
    memory before and after.

    Args:
      chip: the chip.
      flops: twice the multiply-adds.
      operand_bytes: bytes of both operands, the smaller first.
      result_bytes: bytes of the result.
      lhs_dtype: of one operand; the dtypes and the precision decide the peak.
      rhs_dtype: of the other.
      precision: as `jnp.einsum` takes it.
      widened: elements of an int8 operand that the chip converts to bf16.
      summed_bytes: bytes, in 32 bits, of a partial sum that the matmul adds to.
    """
    small, large = operand_bytes
    streaming = large / (chip.hbm_efficiency * chip.hbm_bandwidth)
    passing = (small + result_bytes) / chip.vector_bandwidth
    computing = flops / dot_flops(chip, lhs_dtype, rhs_dtype, precision)
    computing += 0.25 * widened / chip.int8_convert_rate
    if summed_bytes > chip.sum_bytes:
        computing = max(computing, 2 * summed_bytes / chip.hbm_bandwidth)
    filling = chip.dot_fill_seconds + large / chip.dot_fill_bandwidth
    return max(computing + filling, streaming + passing + chip.hbm_fill_seconds)


def dot_seconds(
    work: Workload, fractions: Fractions | None = None, *, waiting: float = 0.0
) -> float:
    """Seconds of one dot with every right operand.

    Args:
      work: the einsum.
      fractions: of the labels' sizes, for the dot of a chunk.
      waiting: seconds that the dot waits for an operand, as a fraction of its arithmetic.
    """
    fractions = fractions or {}
    key = (waiting, *fractions.items())
    if key not in work.dots:
        work.dots[key] = _dot_seconds(work, fractions, waiting)
    return work.dots[key]


def _dot_seconds(work: Workload, fractions: Fractions, waiting: float) -> float:
    op, chip = work.op, work.chip
    lhs, rhs, out = [work.elements(labels, fractions) for labels in (op.lhs, op.rhs, op.out)]
    # The matrix unit multiplies full tiles.
    padded = {
        label: _padded(work.sizes[label] * fraction) / max(1, work.sizes[label])
        for label, fraction in fractions.items()
    }
    flops = 2 * work.elements("".join(dict.fromkeys(op.lhs + op.rhs)), padded)
    adds = any(fraction < 1 and label not in op.out for label, fraction in fractions.items())
    seconds = matmul_seconds(
        chip,
        flops,
        sorted((lhs * work.lhs_dtype.itemsize, rhs * work.rhs_dtype.itemsize)),
        out * op.dtype.itemsize,
        lhs_dtype=work.lhs_dtype,
        rhs_dtype=work.rhs_dtype,
        precision=op.precision,
        widened=work.elements(work.widened, fractions) if work.widened else 0,
        # A chunk of a contraction reads and writes the sum so far, in 32 bits.
        summed_bytes=4 * out if adds else 0,
    )
    rate = dot_flops(chip, work.lhs_dtype, work.rhs_dtype, op.precision)
    return (seconds + waiting * flops / rate) * work.rhs_count


def _padded(size: float) -> float:
    return -(-size // MATRIX_TILE) * MATRIX_TILE if size >= MATRIX_TILE else size


def full_dot_seconds(work: Workload) -> float:
    """Seconds of the dot of unsliced operands. A gathered operand is in on-chip memory already; for
    another one the dot waits (`Chip.remote_dot_waits`)."""
    return dot_seconds(work, waiting=work.chip.remote_dot_waits if work.op.gather is None else 0)


def pass_seconds(work: Workload, moved: float) -> float:
    """Seconds of a memory pass that reads and writes `moved` bytes in all."""
    return moved / work.chip.vector_bandwidth


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
