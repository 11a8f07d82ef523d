"""Qwen 2, 2.5 and 3 without experts."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, HeadNorm, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _refuse_window(fields: ConfigFields) -> None:
    behind = fields.size("num_hidden_layers") > fields.get("max_window_layers", 28)
    fields.refuse_window(enabled=fields.flag("use_sliding_window", False) and behind)


def _qwen2_config(fields: ConfigFields) -> ModelConfig:
    _refuse_window(fields)
    common = common_fields(fields)
    return ModelConfig(**common, rotary=rotary_of(fields, common["d_head"]), biases=("q", "kv"))


def _qwen3_config(fields: ConfigFields) -> ModelConfig:
    _refuse_window(fields)
    common = common_fields(fields, d_head=128)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        biases=biases_of(attention=fields.flag("attention_bias", False)),
        query_key_norm="rmsnorm",
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
