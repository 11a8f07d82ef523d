"""The cycles of the dot of a compiled program that has one."""

from __future__ import annotations

import itertools

from collective_einsum.chips.chip import Chip
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.op_seconds import Basis, op_seconds

# Peaks and clocks are rounded.
_BEYOND = 1.05


def dot_cycles(chip: Chip, text: str, place: int = 0) -> tuple[int, Basis]:
    """The clock cycles of an op with a dot, and by which account.

    Bundles with which the dot would exceed the chip's highest peak were not all counted (int8 and fp8
    dots on TPU7x, by a fifth); the estimate stands for them.

    Args:
      chip: rates and bandwidths.
      text: the scheduled module, with the bundles of narrow dots where `ruler.bundles` counted them.
      place: of the op among those with a dot, in the order of the text.

    Raises:
      ValueError: if `text` is no HLO module, or fewer ops have a dot and estimated cycles.
    """
    module = hlo.parse(text)
    dots = (
        (computation, op, flops)
        for computation in module.computations.values()
        for op in computation
        if op.estimated_cycles is not None and (flops := work.flops(module, computation, op))
    )
    try:
        computation, op, flops = next(itertools.islice(dots, place, None))
    except StopIteration:
        raise ValueError(
            f"the module has no {place + 1} dots with estimated cycles; pass the text of compiled dots"
        ) from None
    moved = work.hbm_bytes(module, computation, op)
    seconds, basis = op_seconds(chip, computation, op, moved, flops)
    peak = max(chip.bf16_flops, chip.int8_ops, chip.fp8_flops)
    if basis == "bundles" and flops / seconds > _BEYOND * peak:
        return op.estimated_cycles or 0, "estimate"
    return round(seconds * chip.clock_hz), basis
