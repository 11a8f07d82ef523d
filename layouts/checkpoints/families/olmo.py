"""OLMo 1, whose norms have no weights, and OLMo 2, whose norms stand after attention and feedforward."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Ones, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _olmo_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields)
    common["norm_epsilon"] = 1e-5
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        norm="layernorm",
        clip_qkv=fields.optional_number("clip_qkv", None),
        biases=biases_of(attention=fields.flag("attention_bias", False)),
    )


def _olmo2_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, epsilon=("rms_norm_eps", 1e-5))
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        norm_placement="after",
        biases=biases_of(attention=fields.flag("attention_bias", False)),
        query_key_norm="rmsnorm",
        query_key_norm_span="heads",
    )


OLMO = Family(
    ("olmo",),
    _olmo_config,
    {**MODULES, "norm": Ones(), "norm_ffn": Ones(), "final_norm": Ones()},
    BUFFERS,
)
OLMO2 = Family(
    ("olmo2",),
    _olmo2_config,
    {
        **MODULES,
        "norm_after": "model.layers.{layer}.post_attention_layernorm",
        "norm_after_ffn": "model.layers.{layer}.post_feedforward_layernorm",
        "norm_q": "model.layers.{layer}.self_attn.q_norm",
        "norm_k": "model.layers.{layer}.self_attn.k_norm",
    },
    BUFFERS,
)
