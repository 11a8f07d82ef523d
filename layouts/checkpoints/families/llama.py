"""Llama 1 to 3.3 and models of the same kind (SmolLM, Yi), Mistral, Mixtral and Granite."""

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
