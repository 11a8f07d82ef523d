"""Operations that wait for HBM longer than they compute, and the seconds that they take.

Compilers' estimates charge what streams from and to HBM at less than chips reach: by libtpu 0.0.50.1,
dots of bf16 weights 0.72 of the data sheet's bandwidth on TPU v4 and copies 0.40 on v6e, where 0.83 was
measured. Such an operation takes its bytes over the bandwidth that is reached.
"""

from __future__ import annotations

from .chip import Chip

# Fraction of the peak that a large dot reaches: bf16 8192 x 8192 x 8192 on TPU v6e, measured (the
# records of `bench.truth`).
_MATMUL_EFFICIENCY = 0.9


def waits_for_hbm(chip: Chip, hbm_bytes: float, flops: float) -> bool:
    """Whether a dot waits for its HBM bytes longer than it multiplies."""
    multiplies = flops / (_MATMUL_EFFICIENCY * chip.bf16_flops)
    return hbm_bytes / chip.reached_hbm_bandwidth > multiplies


def streaming_seconds(chip: Chip, hbm_bytes: float) -> float:
    """Seconds of an operation that waits for these HBM bytes."""
    return hbm_bytes / chip.reached_hbm_bandwidth + chip.hbm_fill_seconds
