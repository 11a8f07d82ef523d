"""Gemma 1 and 2."""

from __future__ import annotations

import math
from typing import Any

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _common(fields: ConfigFields) -> dict[str, Any]:
    fields.refuse("use_bidirectional_attention", "attention to later tokens")
    common = common_fields(fields, d_head=256, tied=True)
    common |= {
        "rotary": rotary_of(fields, common["d_head"]),
        "biases": biases_of(attention=fields.flag("attention_bias", False)),
        # Scales are stored less 1.
        "norm_offset": 1.0,
        "embedding_scale": math.sqrt(common["d_model"]),
        "activation": fields.activation("hidden_activation", "gelu_pytorch_tanh"),
    }
    return common


def _gemma_config(fields: ConfigFields) -> ModelConfig:
    common = _common(fields)
    if fields.get("hidden_activation") is None:
        # The first config.json said "gelu", where the model has the tanh approximation.
        own = fields.activation("hidden_act", "gelu_pytorch_tanh")
        common["activation"] = "gelu_tanh" if own == "gelu" else own
    return ModelConfig(**common)


def _gemma2_config(fields: ConfigFields) -> ModelConfig:
    return ModelConfig(
        **_common(fields),
        attention_kinds=fields.attention_kinds(("sliding_attention", "full_attention")),
        norm_placement="both",
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_cap=fields.optional_number("attn_logit_softcapping", 50.0),
        logit_cap=fields.optional_number("final_logit_softcapping", 30.0),
    )


GEMMA = Family(("gemma",), _gemma_config, MODULES, BUFFERS)
GEMMA2 = Family(
    ("gemma2",),
    _gemma2_config,
    {
        **MODULES,
        "norm_after": "model.layers.{layer}.post_attention_layernorm",
        "norm_ffn": "model.layers.{layer}.pre_feedforward_layernorm",
        "norm_after_ffn": "model.layers.{layer}.post_feedforward_layernorm",
    },
    BUFFERS,
)
