"""The seconds of moving data within a chip, where the compiler gives no estimate.

A `dynamic-update-slice` that stands alone, and a copy or reshape between on-chip memories, have no
`estimated_cycles`, though the compiler emits a loop over vector registers for them. Where bundles are
not counted (`ruler.bundles`), the replay takes for them the compiler's estimate of a slice of as many
elements.
"""

from __future__ import annotations

from collective_einsum.chips.chip import Chip
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes

# Cycles estimated by libtpu 0.0.42.1 for `lax.dynamic_slice` of [64, 1152] and of [512, 4608] out
# of an array of four times as many columns, between collective-permutes, by bytes of an element.
# The slice of [512, 1152], between the two, lies within 10% of the line through them.
_SMALL, _LARGE = 64 * 1152, 512 * 4608
_SLICE_CYCLES = {
    "TPU v4": {1: (1287, 19227), 2: (1337, 23096), 4: (1301, 22520)},
    "TPU v5p": {1: (2453, 12915), 2: (2472, 13519), 4: (2353, 11546)},
    "TPU v5e": {1: (2541, 25038), 2: (2769, 34809), 4: (2451, 25020)},
    "TPU v6e": {1: (2557, 16230), 2: (2494, 14214), 4: (2188, 6294)},
}
# TPU7x takes those of v6e, the nearest chip; its own were not read.
_SLICE_CYCLES["TPU7x"] = _SLICE_CYCLES["TPU v6e"]
_UPDATE = "dynamic-update-slice"
_MOVES = (
    *("slice", "dynamic-slice", "copy", "concatenate", "pad"),
    *("broadcast", "reshape", "transpose", "reverse"),
)


def move_seconds(
    chip: Chip, computation: hlo.Computation, instruction: hlo.Instruction
) -> float | None:
    """Seconds of a movement that has no estimate; None for any other instruction.

    An update of HBM counts too, since its data goes through the same registers. A copy to or from HBM
    does not: it is a DMA, whose time follows from its bytes.
    """
    if instruction.estimated_cycles is not None:
        return None
    if instruction.opcode == _UPDATE:
        moved = computation[instruction.operands[1]].shape
    elif moves_on_chip(computation, instruction):
        moved = instruction.shape
    else:
        return None
    return sum(_seconds(chip, leaf) for leaf in shapes.leaves(moved))


def moves_on_chip(computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    """Whether an instruction moves data, of which none is in HBM before or after."""
    return instruction.opcode in (*_MOVES, _UPDATE) and not any(
        leaf.memory_space == shapes.HBM
        for name in (instruction.name, *instruction.operands)
        for leaf in shapes.leaves(computation[name].shape)
    )


def _seconds(chip: Chip, shape: shapes.Shape) -> float:
    # A single element, or an array outside the vector memories, never fills a vector register.
    if shape.size <= 1 or shape.memory_space not in (shapes.HBM, shapes.VMEM, shapes.CMEM):
        return 0.0
    by_width = _SLICE_CYCLES.get(chip.name)
    if by_width is None:
        return shape.bytes / chip.hbm_bandwidth
    width = max(shape.bytes // shape.size, 1)
    small, large = by_width[min(by_width, key=lambda known: abs(known - width))]
    per_element = (large - small) / (_LARGE - _SMALL)
    return (small + (shape.size - _SMALL) * per_element) / chip.clock_hz
