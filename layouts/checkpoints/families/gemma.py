"""Gemma 1, 2 and 3; of Gemma 3 that sees images, the text model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, HeadNorm, Modules, biases_of, common_fields, renamed_modules
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _common(fields: ConfigFields) -> dict[str, Any]:
    fields.refuse("use_bidirectional_attention", "attention to later tokens")
    common = common_fields(fields, d_head=256, tied=True)
    common |= {
        "rotary": rotary_of(fields, common["d_head"], layers="full_attention"),
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


def _gemma3_config(fields: ConfigFields) -> ModelConfig:
    fields = _text_fields(fields)
    common = _common(fields)
    # Layers with a window have another base, and an old config.json's scaling is not theirs.
    own = {"rope_theta": fields.number("rope_local_base_freq", 10000.0), "rope_scaling": None}
    local = dataclasses.replace(fields, values={**fields.values, **own})
    rotary = rotary_of(local, common["d_head"], layers="sliding_attention")
    return ModelConfig(
        **common,
        attention_kinds=fields.attention_kinds(fields.window_pattern(6), sliding=rotary),
        norm_placement="both",
        query_key_norm="rmsnorm",
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        attention_cap=fields.optional_number("attn_logit_softcapping", None),
        logit_cap=fields.optional_number("final_logit_softcapping", None),
    )


def _text_fields(fields: ConfigFields) -> ConfigFields:
    """The fields of the text model, which has its own in a model that sees images, with those of Gemma
    3 4B's shape that its config.json leaves out."""
    text = fields.get("text_config", fields.values)
    if not isinstance(text, Mapping):
        raise fields.refusal("text_config", "must be an object")
    fields = dataclasses.replace(fields, values={"model_type": fields.model_type, **text})
    return fields.with_defaults(
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=262208,
        max_position_embeddings=131072,
        sliding_window=4096,
        rope_theta=1000000.0,
    )


GEMMA = Family(("gemma",), _gemma_config, MODULES, BUFFERS)
_GEMMA2 = {
    **MODULES,
    "norm_after": "model.layers.{layer}.post_attention_layernorm",
    "norm_ffn": "model.layers.{layer}.pre_feedforward_layernorm",
    "norm_after_ffn": "model.layers.{layer}.post_feedforward_layernorm",
}
GEMMA2 = Family(("gemma2",), _gemma2_config, _GEMMA2, BUFFERS)
_GEMMA3: Modules = {
    **_GEMMA2,
    "norm_q": HeadNorm("model.layers.{layer}.self_attn.q_norm", "shared"),
    "norm_k": HeadNorm("model.layers.{layer}.self_attn.k_norm", "shared"),
}
GEMMA3_TEXT = Family(("gemma3_text",), _gemma3_config, _GEMMA3, BUFFERS)
# The hub's names; what sees images is left out.
GEMMA3 = Family(
    ("gemma3",),
    _gemma3_config,
    renamed_modules(_GEMMA3, lambda module: f"language_model.{module}"),
    (*BUFFERS, r"vision_tower\..*", r"multi_modal_projector\..*"),
)
