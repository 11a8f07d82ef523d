"""Qwen 2, 2.5 and 3, and Qwen 3 with experts."""

from __future__ import annotations

import dataclasses

from ...models.config import AttentionKind, Experts, ModelConfig
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


def _qwen3_moe_config(fields: ConfigFields) -> ModelConfig:
    fields.refuse(
        "mlp_only_layers", "layers without experts beside those with them", unless=(None, [])
    )
    fields.refuse(
        "decoder_sparse_step",
        "layers without experts beside those with them",
        unless=(None, 1),
    )
    chosen = fields.flag("norm_topk_prob", False)
    experts = Experts(
        fields.size("num_experts", fields.size("num_local_experts", 128)),
        fields.size("num_experts_per_tok", 8),
        probabilities="chosen" if chosen else "all",
    )
    d_ff = fields.size("moe_intermediate_size", 768)
    return dataclasses.replace(_qwen3_config(fields), d_ff=d_ff, experts=experts)


QWEN2 = Family(("qwen2",), _qwen2_config, MODULES, BUFFERS)
_QWEN3_MODULES = {
    **MODULES,
    "norm_q": HeadNorm("model.layers.{layer}.self_attn.q_norm", "shared"),
    "norm_k": HeadNorm("model.layers.{layer}.self_attn.k_norm", "shared"),
}
QWEN3 = Family(("qwen3",), _qwen3_config, _QWEN3_MODULES, BUFFERS)
QWEN3_MOE = Family(
    ("qwen3_moe",),
    _qwen3_moe_config,
    {
        **_QWEN3_MODULES,
        "router": "model.layers.{layer}.mlp.gate",
        "in": "model.layers.{layer}.mlp.experts.{expert}.up_proj",
        "gate": "model.layers.{layer}.mlp.experts.{expert}.gate_proj",
        "out": "model.layers.{layer}.mlp.experts.{expert}.down_proj",
    },
    BUFFERS,
)
