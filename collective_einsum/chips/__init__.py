"""Chips: their figures, how a device is recognized, and the compiler options they get."""

from .chip import Chip as Chip
from .compile_context import compiler_options as compiler_options
from .compile_context import for_chip as for_chip
from .compile_context import traced_chip as traced_chip
from .compiler_figures import CompilerFigures as CompilerFigures
from .dot_rates import dot_flops as dot_flops
from .known_chips import H100 as H100
from .known_chips import H200 as H200
from .known_chips import TPU_7X as TPU_7X
from .known_chips import TPU_V4 as TPU_V4
from .known_chips import TPU_V5E as TPU_V5E
from .known_chips import TPU_V5P as TPU_V5P
from .known_chips import TPU_V6E as TPU_V6E
from .names import UnlistedChipWarning as UnlistedChipWarning
from .names import as_chip as as_chip
from .names import chip_for as chip_for
from .names import options_on as options_on
from .tiles import MATRIX_TILE as MATRIX_TILE
from .tiles import TILE_LANES as TILE_LANES
from .tiles import TILE_ROWS as TILE_ROWS

__all__ = [
    "H100",
    "H200",
    "MATRIX_TILE",
    "TILE_LANES",
    "TILE_ROWS",
    "TPU_7X",
    "TPU_V4",
    "TPU_V5E",
    "TPU_V5P",
    "TPU_V6E",
    "Chip",
    "CompilerFigures",
    "UnlistedChipWarning",
    "as_chip",
    "chip_for",
    "compiler_options",
    "dot_flops",
    "for_chip",
    "options_on",
    "traced_chip",
]
