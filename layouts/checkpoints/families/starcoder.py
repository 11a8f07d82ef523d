"""StarCoder 2."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _starcoder2_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, tied=True, epsilon=("norm_epsilon", 1e-5))
    common["activation"] = fields.activation(default="gelu_pytorch_tanh")
    biased = fields.flag("use_bias", True)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        attention_kinds=fields.attention_kinds(),
        gated=False,
        norm="layernorm",
        biases=biases_of(attention=biased, ungated=biased, norm=True),
    )


STARCODER2 = Family(
    ("starcoder2",),
    _starcoder2_config,
    {
        **MODULES,
        "in": "model.layers.{layer}.mlp.c_fc",
        "out": "model.layers.{layer}.mlp.c_proj",
    },
    BUFFERS,
)
