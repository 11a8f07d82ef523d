"""Falcon 7B, 40B, 180B, 2-11B, and Falcon-RW with ALiBi."""

from __future__ import annotations

from ...models.config import Biased, ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Fused, Modules, TwoNorms
from ..rotary_fields import rotary_of
from .llama import BUFFERS


def _is_new(fields: ConfigFields) -> bool:
    return fields.flag("new_decoder_architecture", False)


def _is_parallel(fields: ConfigFields) -> bool:
    return _is_new(fields) or fields.flag("parallel_attn", True)


def _has_two_norms(fields: ConfigFields) -> bool:
    return _is_new(fields) and fields.size("num_ln_in_parallel_attn", 2) == 2


def _biases(fields: ConfigFields) -> tuple[Biased, ...]:
    """Of the checkpoint."""
    every: tuple[Biased, ...] = ("q", "kv", "o", "in", "out")
    return (*(every if fields.flag("bias", False) else ()), "norm")


def _falcon_config(fields: ConfigFields) -> ModelConfig:
    heads, d_model = fields.size("num_attention_heads"), fields.size("hidden_size")
    kv_heads = heads
    if _is_new(fields):
        kv_heads = fields.size("num_kv_heads", heads)
    elif fields.flag("multi_query", True):
        kv_heads = 1
    d_head = d_model // heads
    alibi = fields.flag("alibi", False)
    folded = ("q", "kv", "in") if _has_two_norms(fields) else ()
    return ModelConfig(
        name=fields.name,
        layers=fields.size("num_hidden_layers"),
        d_model=d_model,
        d_ff=fields.size("ffn_hidden_size", 4 * d_model),
        heads=heads,
        kv_heads=kv_heads,
        d_head=d_head,
        vocab=fields.size("vocab_size"),
        block="parallel" if _is_parallel(fields) else "serial",
        activation=fields.activation("activation", "gelu"),
        gated=False,
        norm="layernorm",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        rotary=None if alibi else rotary_of(fields, d_head),
        # Scores are scaled with what is subtracted from them.
        alibi=d_head**-0.5 if alibi else None,
        biases=(*_biases(fields), *folded),
        tied_embedding=fields.flag("tie_word_embeddings", True),
    )


def _falcon_modules(fields: ConfigFields) -> Modules:
    layer = "transformer.h.{layer}."
    first = layer + "input_layernorm"
    norms: Modules = {"norm": first, "norm_ffn": layer + "post_attention_layernorm"}
    if _has_two_norms(fields):
        norms = {"norm": TwoNorms(layer + "ln_attn", layer + "ln_mlp", _biases(fields))}
    return {
        "embedding": "transformer.word_embeddings",
        "final_norm": "transformer.ln_f",
        "unembedding": "lm_head",
        **dict.fromkeys(("q", "k", "v"), Fused(layer + "self_attention.query_key_value", "groups")),
        "o": layer + "self_attention.dense",
        "in": layer + "mlp.dense_h_to_4h",
        "out": layer + "mlp.dense_4h_to_h",
        **norms,
    }


FALCON = Family(("falcon",), _falcon_config, _falcon_modules, BUFFERS)
