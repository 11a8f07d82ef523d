"""Qwen 2, 2.5 and 3 without experts."""

from __future__ import annotations

from ...models.config import AttentionKind, ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, HeadNorm, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _kinds(fields: ConfigFields) -> tuple[AttentionKind, ...]:
    full, layers = fields.size("max_window_layers", 28), fields.size("num_hidden_layers")
    kinds = fields.attention_kinds(
        ["full_attention" if i < full else "sliding_attention" for i in range(layers)]
    )
    return kinds if fields.flag("use_sliding_window", False) else ()


def _qwen2_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        attention_kinds=_kinds(fields),
        biases=("q", "kv"),
    )


def _qwen3_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, d_head=128)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        biases=biases_of(attention=fields.flag("attention_bias", False)),
        query_key_norm="rmsnorm",
        attention_kinds=_kinds(fields),
    )


QWEN2 = Family(("qwen2",), _qwen2_config, MODULES, BUFFERS)
QWEN3 = Family(
    ("qwen3",),
    _qwen3_config,
    {
        **MODULES,
        "norm_q": HeadNorm("model.layers.{layer}.self_attn.q_norm", "shared"),
        "norm_k": HeadNorm("model.layers.{layer}.self_attn.k_norm", "shared"),
    },
    BUFFERS,
)
