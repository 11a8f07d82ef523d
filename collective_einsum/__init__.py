"""Einsums whose collectives overlap with the matmul: all-gather before, reduce-scatter after."""

from .chips.chip import Chip as Chip
from .chips.compile_context import compiler_options as compiler_options
from .chips.known_chips import H100 as H100
from .chips.known_chips import H200 as H200
from .chips.known_chips import TPU_7X as TPU_7X
from .chips.known_chips import TPU_V4 as TPU_V4
from .chips.known_chips import TPU_V5E as TPU_V5E
from .chips.known_chips import TPU_V5P as TPU_V5P
from .chips.known_chips import TPU_V6E as TPU_V6E
from .chips.names import UnlistedChipWarning as UnlistedChipWarning
from .chips.names import as_chip as as_chip
from .chips.names import chip_for as chip_for
from .choose import choose_schedule as choose_schedule
from .collectives import all_gather as all_gather
from .collectives import all_reduce as all_reduce
from .collectives import all_to_all as all_to_all
from .collectives import reduce_scatter as reduce_scatter
from .cost.choice import Choice as Choice
from .dot_general import dot_general as dot_general
from .gather_fold import all_gather_fold as all_gather_fold
from .global_einsum import einsum as einsum
from .jitted import jit as jit
from .local_einsums import all_gather_einsum as all_gather_einsum
from .local_einsums import all_gather_einsum_reduce_scatter as all_gather_einsum_reduce_scatter
from .local_einsums import einsum_all_reduce as einsum_all_reduce
from .local_einsums import einsum_reduce_scatter as einsum_reduce_scatter
from .ops.schedule import Schedule as Schedule
from .spec.quantized import Quantized as Quantized
from .spec.quantized import quantize as quantize

__version__ = "0.1.0"

__all__ = [
    "H100",
    "H200",
    "TPU_7X",
    "TPU_V4",
    "TPU_V5E",
    "TPU_V5P",
    "TPU_V6E",
    "Chip",
    "Choice",
    "Quantized",
    "Schedule",
    "UnlistedChipWarning",
    "__version__",
    "all_gather",
    "all_gather_einsum",
    "all_gather_einsum_reduce_scatter",
    "all_gather_fold",
    "all_reduce",
    "all_to_all",
    "as_chip",
    "chip_for",
    "choose_schedule",
    "compiler_options",
    "dot_general",
    "einsum",
    "einsum_all_reduce",
    "einsum_reduce_scatter",
    "jit",
    "quantize",
    "reduce_scatter",
]


def __dir__() -> list[str]:
    return sorted(__all__)
