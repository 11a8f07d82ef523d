"""Chips: their figures, how a device is recognized, and the compiler options they get."""

from .chip import Chip as Chip
from .compile_context import compiler_options as compiler_options
from .compile_context import for_chip as for_chip
from .compile_context import traced_chip as traced_chip
from .compiler_habits import CompilerHabits as CompilerHabits
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
from .observations import DotObservation as DotObservation
from .observations import Observations as Observations
from .observations import PassKind as PassKind
from .observations import PassObservation as PassObservation
from .observations import Scattered as Scattered
from .observations import file_name as file_name
from .observations import nearest_version as nearest_version
from .observations import observed_folder as observed_folder
from .peaks import peak_flops as peak_flops
from .slices import factors as factors
from .slices import folded_axes as folded_axes
from .slices import slice_sides as slice_sides
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
    "CompilerHabits",
    "DotObservation",
    "Observations",
    "PassKind",
    "PassObservation",
    "Scattered",
    "UnlistedChipWarning",
    "as_chip",
    "chip_for",
    "compiler_options",
    "factors",
    "file_name",
    "folded_axes",
    "for_chip",
    "nearest_version",
    "observed_folder",
    "options_on",
    "peak_flops",
    "slice_sides",
    "traced_chip",
]
