"""Llama 1 to 3.3 and models of the same kind (SmolLM, Yi), SmolLM 3, Mistral, Mixtral, and Granite."""

from __future__ import annotations

import dataclasses

from ...models.config import Experts, ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, biases_of, common_fields
from ..rotary_fields import rotary_of

# Buffers that transformers once saved.
BUFFERS = (
    r"(.*\.)?rotary_emb\.inv_freq",
    r".*\.(attn|attention|self_attn|self_attention)\.(masked_)?bias",
)
ENDS = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "unembedding": "lm_head",
}
ATTENTION = {
    "q": "model.layers.{layer}.self_attn.q_proj",
    "k": "model.layers.{layer}.self_attn.k_proj",
    "v": "model.layers.{layer}.self_attn.v_proj",
    "o": "model.layers.{layer}.self_attn.o_proj",
}
FEEDFORWARD = {
    "in": "model.layers.{layer}.mlp.up_proj",
    "gate": "model.layers.{layer}.mlp.gate_proj",
    "out": "model.layers.{layer}.mlp.down_proj",
}
NORMS = {
    "norm": "model.layers.{layer}.input_layernorm",
    "norm_ffn": "model.layers.{layer}.post_attention_layernorm",
}
MODULES = {**ENDS, **ATTENTION, **FEEDFORWARD, **NORMS}


def _llama_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields)
    biases = biases_of(
        attention=fields.flag("attention_bias", False), feedforward=fields.flag("mlp_bias", False)
    )
    return ModelConfig(**common, rotary=rotary_of(fields, common["d_head"]), biases=biases)


def _smollm3_config(fields: ConfigFields) -> ModelConfig:
    fields = fields.with_defaults(
        rope_theta=2000000.0, max_position_embeddings=32768, tie_word_embeddings=True
    )
    layers, interval = fields.size("num_hidden_layers"), fields.size("no_rope_layer_interval", 4)
    rotated = fields.get("no_rope_layers", [int((i + 1) % interval != 0) for i in range(layers)])
    if not isinstance(rotated, list) or len(rotated) < layers:
        raise fields.refusal(
            "no_rope_layers", f"must be a list of a number for each of {layers} layers"
        )
    default = "sliding_attention" if fields.flag("use_sliding_window", False) else "full_attention"
    kinds = fields.attention_kinds(
        ["full_attention" if rotates else default for rotates in rotated[:layers]]
    )
    kinds = tuple(
        kind if rotates else dataclasses.replace(kind, rotary=None)
        for kind, rotates in zip(kinds, rotated, strict=False)
    )
    return dataclasses.replace(_llama_config(fields), attention_kinds=kinds)


def _mistral_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        attention_kinds=fields.attention_kinds(),
    )


def _mixtral_config(fields: ConfigFields) -> ModelConfig:
    experts = Experts(fields.size("num_local_experts", 8), fields.size("num_experts_per_tok", 2))
    return dataclasses.replace(_mistral_config(fields), experts=experts)


def _granite_config(fields: ConfigFields) -> ModelConfig:
    return dataclasses.replace(
        _llama_config(fields),
        embedding_scale=fields.number("embedding_multiplier", 1.0),
        residual_scale=fields.number("residual_multiplier", 1.0),
        attention_scale=fields.number("attention_multiplier", 1.0),
        logit_scale=1 / fields.number("logits_scaling", 1.0),
    )


LLAMA = Family(("llama",), _llama_config, MODULES, BUFFERS)
SMOLLM3 = Family(("smollm3",), _smollm3_config, MODULES, BUFFERS)
MISTRAL = Family(("mistral",), _mistral_config, MODULES, BUFFERS)
_MIXTURE = "model.layers.{layer}.block_sparse_moe."
MIXTRAL = Family(
    ("mixtral",),
    _mixtral_config,
    {
        **MODULES,
        "router": _MIXTURE + "gate",
        "gate": _MIXTURE + "experts.{expert}.w1",
        "in": _MIXTURE + "experts.{expert}.w3",
        "out": _MIXTURE + "experts.{expert}.w2",
    },
    BUFFERS,
)
GRANITE = Family(("granite",), _granite_config, MODULES, BUFFERS)
