"""Qwen 2, 2.5 and 3, and Qwen 1.5, 2 and 3 with experts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ...models.config import AttentionKind, Experts, ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, HeadNorm, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _kinds(
    fields: ConfigFields, is_full: Callable[[int, int], bool] = lambda i, windows: i < windows
) -> tuple[AttentionKind, ...]:
    """The attention of each layer; `is_full` says which layers i have no window where config.json does
    not, from its max_window_layers."""
    slides = fields.flag("use_sliding_window", False)
    windows, layers = fields.size("max_window_layers", 28), fields.size("num_hidden_layers")
    full = [not slides or is_full(i, windows) for i in range(layers)]
    kinds = fields.attention_kinds(["full_attention" if f else "sliding_attention" for f in full])
    return kinds if slides else ()


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


def _qwen2_moe_config(fields: ConfigFields) -> ModelConfig:
    _refuse_layers_without_experts(fields)
    has_bias = fields.flag("qkv_bias", True)
    kinds = _kinds(fields, lambda i, windows: i % 2 == 1 or i >= windows)
    experts = Experts(
        fields.size("num_experts", 60),
        fields.size("num_experts_per_tok", 4),
        probabilities="chosen" if fields.flag("norm_topk_prob", False) else "all",
        shared_width=fields.size("shared_expert_intermediate_size", 5632),
        shared_router=True,
    )
    return dataclasses.replace(
        _qwen2_config(fields),
        d_ff=fields.size("moe_intermediate_size", 1408),
        experts=experts,
        attention_kinds=kinds,
        biases=biases_of(q=has_bias, kv=has_bias),
    )


def _refuse_layers_without_experts(fields: ConfigFields) -> None:
    fields.refuse(
        "mlp_only_layers", "layers without experts beside those with them", unless=(None, [])
    )
    fields.refuse(
        "decoder_sparse_step",
        "layers without experts beside those with them",
        unless=(None, 1),
    )


def _qwen3_moe_config(fields: ConfigFields) -> ModelConfig:
    _refuse_layers_without_experts(fields)
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
_MLP = "model.layers.{layer}.mlp."
_EXPERTS = {
    "router": _MLP + "gate",
    "in": _MLP + "experts.{expert}.up_proj",
    "gate": _MLP + "experts.{expert}.gate_proj",
    "out": _MLP + "experts.{expert}.down_proj",
}
_SHARED = {
    "shared_router": _MLP + "shared_expert_gate",
    "shared_in": _MLP + "shared_expert.up_proj",
    "shared_gate": _MLP + "shared_expert.gate_proj",
    "shared_out": _MLP + "shared_expert.down_proj",
}
QWEN2_MOE = Family(("qwen2_moe",), _qwen2_moe_config, {**MODULES, **_EXPERTS, **_SHARED}, BUFFERS)
QWEN3_MOE = Family(("qwen3_moe",), _qwen3_moe_config, {**_QWEN3_MODULES, **_EXPERTS}, BUFFERS)
