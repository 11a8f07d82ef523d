"""Models as data: configurations, parameters and how they are stacked and padded."""

from .cache import Cache as Cache
from .cache import Entries as Entries
from .cache import Prefix as Prefix
from .config import ModelConfig as ModelConfig
from .config import Rotary as Rotary
from .head_padding import pad_heads as pad_heads
from .named_models import MT_NLG_530B as MT_NLG_530B
from .named_models import PALM_8B as PALM_8B
from .named_models import PALM_62B as PALM_62B
from .named_models import PALM_540B as PALM_540B
from .named_models import TINY_MULTIQUERY as TINY_MULTIQUERY
from .named_models import model as model
from .params import Params as Params
from .params import params_shapes as params_shapes
from .params import quantize as quantize
from .stacked_params import unroll as unroll

__all__ = [
    "MT_NLG_530B",
    "PALM_8B",
    "PALM_62B",
    "PALM_540B",
    "TINY_MULTIQUERY",
    "Cache",
    "Entries",
    "ModelConfig",
    "Params",
    "Prefix",
    "Rotary",
    "model",
    "pad_heads",
    "params_shapes",
    "quantize",
    "unroll",
]
