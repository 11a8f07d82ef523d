"""The paper's partitionings: how weights, activations and the cache are split over a mesh."""

from .attention_layouts import AttentionLayout as AttentionLayout
from .attention_layouts import BatchSharded as BatchSharded
from .attention_layouts import HeadSharded as HeadSharded
from .cache_specs import cache_specs as cache_specs
from .feedforward_layout import FeedForwardLayout as FeedForwardLayout
from .named_layouts import ATTENTIONS as ATTENTIONS
from .named_layouts import FEEDFORWARDS as FEEDFORWARDS
from .padded_sizes import padded_capacity as padded_capacity
from .param_specs import param_specs as param_specs
from .param_specs import shardings as shardings
from .param_specs import vocab_axes as vocab_axes
from .partitioning import Partitioning as Partitioning
from .partitioning import activation_spec as activation_spec
from .partitioning import misfit as misfit
from .weight_gathered import WeightGathered as WeightGathered
from .weight_stationary import WeightStationary1D as WeightStationary1D
from .weight_stationary import WeightStationary2D as WeightStationary2D

__all__ = [
    "ATTENTIONS",
    "FEEDFORWARDS",
    "AttentionLayout",
    "BatchSharded",
    "FeedForwardLayout",
    "HeadSharded",
    "Partitioning",
    "WeightGathered",
    "WeightStationary1D",
    "WeightStationary2D",
    "activation_spec",
    "cache_specs",
    "misfit",
    "padded_capacity",
    "param_specs",
    "shardings",
    "vocab_axes",
]
