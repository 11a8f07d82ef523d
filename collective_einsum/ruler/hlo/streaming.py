"""The seconds of operations that wait for HBM.

The compiler's `estimated_cycles` charge what streams from and to HBM at less than chips reach: by
libtpu 0.0.50.1, dots of bf16 weights 0.72 of the data sheet's bandwidth on TPU v4 and copies 0.40 on
v6e, where 0.83 was measured. Such an operation takes its bytes over the bandwidth that is reached.
"""

from __future__ import annotations

from collective_einsum.chips.chip import Chip
from collective_einsum.ruler.hlo import parse as hlo

# Fraction of the peak that a large dot reaches: bf16 8192 x 8192 x 8192 on TPU v6e, measured (the
# records of `bench.truth`).
_MATMUL_EFFICIENCY = 0.9


def streamed_seconds(
    chip: Chip, instruction: hlo.Instruction, hbm_bytes: int, flops: int
) -> float | None:
    """Seconds of a copy, or of a dot that waits for HBM longer than it multiplies; None for all else.

    Args:
      chip: its bandwidths and peak.
      instruction: an operation of the cores.
      hbm_bytes: that it reads from HBM and writes to it.
      flops: of its dots.
    """
    seconds = hbm_bytes / (chip.hbm_efficiency * chip.hbm_bandwidth)
    multiplies = flops / (_MATMUL_EFFICIENCY * chip.bf16_flops)
    waits = seconds > multiplies if flops else instruction.opcode == "copy"
    return seconds + chip.hbm_fill_seconds if hbm_bytes and waits else None
