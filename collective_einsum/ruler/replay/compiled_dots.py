"""The cycles of the dot of a compiled program that has one."""

from __future__ import annotations

from collective_einsum.chips.chip import Chip
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.op_seconds import Basis, op_seconds

# Peaks and clocks are rounded.
_BEYOND = 1.05


def dot_cycles(chip: Chip, text: str) -> tuple[int, Basis]:
    """The clock cycles of the first op with a dot, and by which account.

    Bundles with which the dot would exceed the chip's highest peak were not all counted (int8 and fp8
    dots on TPU7x, by a fifth); the estimate stands for them.

    Args:
      chip: rates and bandwidths.
      text: the scheduled module, with the bundles of narrow dots where `ruler.bundles` counted them.

    Raises:
      ValueError: if `text` is no HLO module, or no op has a dot and estimated cycles.
    """
    module = hlo.parse(text)
    for computation in module.computations.values():
        for op in computation:
            flops = work.flops(module, computation, op)
            if op.estimated_cycles is not None and flops:
                moved = work.hbm_bytes(module, computation, op)
                seconds, basis = op_seconds(chip, computation, op, moved, flops)
                peak = max(chip.bf16_flops, chip.int8_ops, chip.fp8_flops)
                if basis == "bundles" and flops / seconds > _BEYOND * peak:
                    return op.estimated_cycles, "estimate"
                return round(seconds * chip.clock_hz), basis
    raise ValueError("the module has no dot with estimated cycles; pass the text of a compiled dot")
