"""Weights of open models, from Hugging Face folders into sharded parameters."""

from .config_fields import ConfigFields as ConfigFields
from .families import FAMILIES as FAMILIES
from .family import ExpertStack as ExpertStack
from .family import Family as Family
from .family import Fused as Fused
from .family import HeadNorm as HeadNorm
from .family import Ones as Ones
from .family import Part as Part
from .family import PositionTable as PositionTable
from .family import TwoNorms as TwoNorms
from .family import Untransposed as Untransposed
from .family import biases_of as biases_of
from .family import common_fields as common_fields
from .load import config_from_hf as config_from_hf
from .load import load as load
from .rotary_fields import rotary_of as rotary_of

__all__ = [
    "FAMILIES",
    "ConfigFields",
    "ExpertStack",
    "Family",
    "Fused",
    "HeadNorm",
    "Ones",
    "Part",
    "PositionTable",
    "TwoNorms",
    "Untransposed",
    "biases_of",
    "common_fields",
    "config_from_hf",
    "load",
    "rotary_of",
]
