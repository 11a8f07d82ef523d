"""The cycles of the dot of a compiled program that has one."""

from __future__ import annotations

import itertools

from collective_einsum.chips.chip import Chip
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.op_seconds import Basis, multiplying_seconds, op_seconds


def dot_cycles(chip: Chip, text: str, place: int = 0) -> tuple[int, Basis]:
    """The clock cycles of an op with a dot, and by which account.

    Args:
      chip: rates and bandwidths.
      text: the scheduled module, with the bundles of narrow dots where `ruler.bundles` counted them.
      place: of the op among those with a dot, in the order of the text.

    Raises:
      ValueError: if `text` is no HLO module, or fewer ops have a dot and estimated cycles.
    """
    module = hlo.parse(text)
    dots = (
        (computation, op, multiplied)
        for computation in module.computations.values()
        for op in computation
        if op.estimated_cycles is not None
        and (multiplied := list(work.multiplied(module, computation, op)))
    )
    try:
        computation, op, multiplied = next(itertools.islice(dots, place, None))
    except StopIteration:
        raise ValueError(
            f"the module has no {place + 1} dots with estimated cycles; pass the text of compiled dots"
        ) from None
    moved = work.hbm_bytes(module, computation, op)
    multiplying = multiplying_seconds(chip, multiplied)
    seconds, basis = op_seconds(chip, computation, op, moved, multiplying)
    return round(seconds * chip.clock_hz), basis
