"""Transformer layouts built on collective einsums: the partitionings of "Efficiently Scaling
Transformer Inference" (arXiv 2211.05102), as layers and as a whole decoder."""

from collective_einsum import __version__ as __version__

from . import cost as cost
from . import volume as volume
from .attention import attention as attention
from .block import parallel_block as parallel_block
from .block import serial_block as serial_block
from .cache import Cache as Cache
from .cache import Entries as Entries
from .cache import Prefix as Prefix
from .config import MT_NLG_530B as MT_NLG_530B
from .config import PALM_8B as PALM_8B
from .config import PALM_62B as PALM_62B
from .config import PALM_540B as PALM_540B
from .config import ModelConfig as ModelConfig
from .config import Rotary as Rotary
from .config import model as model
from .decoder import decode_step as decode_step
from .decoder import prefill as prefill
from .defaults import default_decode as default_decode
from .defaults import default_prefill as default_prefill
from .feedforward import feedforward as feedforward
from .generate import generate as generate
from .lowering import lower_decode_step as lower_decode_step
from .lowering import lower_prefill as lower_prefill
from .mesh_axes import MeshAxes as MeshAxes
from .mesh_axes import renamed as renamed
from .params import quantize as quantize
from .partitioning import Partitioning as Partitioning
from .partitioning import cache_specs as cache_specs
from .partitioning import param_specs as param_specs
from .partitioning import shardings as shardings
from .placement import BatchSharded as BatchSharded
from .placement import HeadSharded as HeadSharded
from .planner import Option as Option
from .planner import Plan as Plan
from .planner import plan as plan
from .projections import activation_spec as activation_spec
from .sampling import Sampling as Sampling
from .stacking import unroll as unroll
from .state import init as init
from .state import init_cache as init_cache
from .state import move_cache as move_cache
from .state import shared_prefix as shared_prefix
from .sweep import pareto as pareto
from .sweep import sweep as sweep
from .weight_gathered import WeightGathered as WeightGathered
from .weight_stationary import WeightStationary1D as WeightStationary1D
from .weight_stationary import WeightStationary2D as WeightStationary2D

__all__ = [
    "MT_NLG_530B",
    "PALM_8B",
    "PALM_62B",
    "PALM_540B",
    "BatchSharded",
    "Cache",
    "Entries",
    "HeadSharded",
    "MeshAxes",
    "ModelConfig",
    "Option",
    "Partitioning",
    "Plan",
    "Prefix",
    "Rotary",
    "Sampling",
    "WeightGathered",
    "WeightStationary1D",
    "WeightStationary2D",
    "__version__",
    "activation_spec",
    "attention",
    "cache_specs",
    "cost",
    "decode_step",
    "default_decode",
    "default_prefill",
    "feedforward",
    "generate",
    "init",
    "init_cache",
    "lower_decode_step",
    "lower_prefill",
    "model",
    "move_cache",
    "parallel_block",
    "param_specs",
    "pareto",
    "plan",
    "prefill",
    "quantize",
    "renamed",
    "serial_block",
    "shardings",
    "shared_prefix",
    "sweep",
    "unroll",
    "volume",
]


def __dir__() -> list[str]:
    return sorted(__all__)
