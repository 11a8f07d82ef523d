"""The seconds of operations of a module that wait for HBM."""

from __future__ import annotations

from collective_einsum.chips.chip import Chip
from collective_einsum.chips.streaming import streaming_seconds, waits_for_hbm
from collective_einsum.ruler.hlo import parse as hlo


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
    waits = waits_for_hbm(chip, hbm_bytes, flops) if flops else instruction.opcode == "copy"
    return streaming_seconds(chip, hbm_bytes) if hbm_bytes and waits else None
