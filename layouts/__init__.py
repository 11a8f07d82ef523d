"""Transformer layouts built on collective einsums: the partitionings of "Efficiently Scaling
Transformer Inference" (arXiv 2211.05102), as layers and as a whole decoder."""

from collective_einsum import __version__ as __version__

from . import checkpoints as checkpoints
from . import cost as cost
from .checkpoints.load import config_from_hf as config_from_hf
from .cost import paper_closed_forms as paper_closed_forms
from .decoding.decoder import decode_step as decode_step
from .decoding.decoder import prefill as prefill
from .decoding.generate import generate as generate
from .decoding.initialize import init as init
from .decoding.initialize import init_cache as init_cache
from .decoding.initialize import move_cache as move_cache
from .decoding.initialize import shared_prefix as shared_prefix
from .decoding.lowering import lower_decode_step as lower_decode_step
from .decoding.lowering import lower_prefill as lower_prefill
from .decoding.score import score as score
from .mesh.axes import MeshAxes as MeshAxes
from .mesh.axes import renamed as renamed
from .models.cache import Cache as Cache
from .models.cache import Entries as Entries
from .models.cache import Prefix as Prefix
from .models.config import AttentionKind as AttentionKind
from .models.config import Experts as Experts
from .models.config import GateClamp as GateClamp
from .models.config import ModelConfig as ModelConfig
from .models.config import Rotary as Rotary
from .models.named_models import MT_NLG_530B as MT_NLG_530B
from .models.named_models import PALM_8B as PALM_8B
from .models.named_models import PALM_62B as PALM_62B
from .models.named_models import PALM_540B as PALM_540B
from .models.named_models import model as model
from .models.params import quantize as quantize
from .models.rotary import DividedScaling as DividedScaling
from .models.rotary import DynamicScaling as DynamicScaling
from .models.rotary import LinearScaling as LinearScaling
from .models.rotary import Llama3Scaling as Llama3Scaling
from .models.rotary import LongRopeScaling as LongRopeScaling
from .models.rotary import YarnScaling as YarnScaling
from .models.stacked_params import unroll as unroll
from .partitionings.attention_layouts import BatchSharded as BatchSharded
from .partitionings.attention_layouts import HeadSharded as HeadSharded
from .partitionings.cache_specs import cache_specs as cache_specs
from .partitionings.mesh_fit import padded_for as padded_for
from .partitionings.param_specs import param_specs as param_specs
from .partitionings.param_specs import shardings as shardings
from .partitionings.partitioning import Partitioning as Partitioning
from .partitionings.partitioning import activation_spec as activation_spec
from .partitionings.weight_gathered import WeightGathered as WeightGathered
from .partitionings.weight_stationary import WeightStationary1D as WeightStationary1D
from .partitionings.weight_stationary import WeightStationary2D as WeightStationary2D
from .planning.defaults import default_decode as default_decode
from .planning.defaults import default_prefill as default_prefill
from .planning.padded_plan import padded_plan as padded_plan
from .planning.plan import Option as Option
from .planning.plan import Plan as Plan
from .planning.search import plan as plan
from .planning.sweep import pareto as pareto
from .planning.sweep import sweep as sweep
from .replayed_plan import ReplayedOption as ReplayedOption
from .replayed_plan import ReplayedPlan as ReplayedPlan
from .replayed_plan import replay_plan as replay_plan
from .sampling.sampling import Sampling as Sampling
from .single_layers import attention as attention
from .single_layers import feedforward as feedforward
from .single_layers import parallel_block as parallel_block
from .single_layers import serial_block as serial_block

__all__ = [
    "MT_NLG_530B",
    "PALM_8B",
    "PALM_62B",
    "PALM_540B",
    "AttentionKind",
    "BatchSharded",
    "Cache",
    "DividedScaling",
    "DynamicScaling",
    "Entries",
    "Experts",
    "GateClamp",
    "HeadSharded",
    "LinearScaling",
    "Llama3Scaling",
    "LongRopeScaling",
    "MeshAxes",
    "ModelConfig",
    "Option",
    "Partitioning",
    "Plan",
    "Prefix",
    "ReplayedOption",
    "ReplayedPlan",
    "Rotary",
    "Sampling",
    "WeightGathered",
    "WeightStationary1D",
    "WeightStationary2D",
    "YarnScaling",
    "__version__",
    "activation_spec",
    "attention",
    "cache_specs",
    "checkpoints",
    "config_from_hf",
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
    "padded_for",
    "padded_plan",
    "paper_closed_forms",
    "parallel_block",
    "param_specs",
    "pareto",
    "plan",
    "prefill",
    "quantize",
    "renamed",
    "replay_plan",
    "score",
    "serial_block",
    "shardings",
    "shared_prefix",
    "sweep",
    "unroll",
]


def __dir__() -> list[str]:
    return sorted(__all__)
