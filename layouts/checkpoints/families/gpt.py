"""GPT-2, StarCoder 1, GPT-J, and GPT-NeoX with Pythia and RedPajama."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...models.config import Biased, ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Fused, Modules, TwoNorms, Untransposed, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS


def _common(fields: ConfigFields, *, tied: bool) -> dict[str, Any]:
    """What GPT-2, StarCoder and GPT-J share."""
    heads, d_model = fields.size("n_head"), fields.size("n_embd")
    return {
        "name": fields.name,
        "layers": fields.size("n_layer"),
        "d_model": d_model,
        "d_ff": fields.size("n_inner", 4 * d_model),
        "heads": heads,
        "kv_heads": heads,
        "d_head": d_model // heads,
        "vocab": fields.size("vocab_size"),
        "activation": fields.activation("activation_function", "gelu_new"),
        "gated": False,
        "norm": "layernorm",
        "norm_epsilon": fields.number("layer_norm_epsilon", 1e-5),
        "tied_embedding": fields.flag("tie_word_embeddings", tied),
    }


def _gpt2_config(fields: ConfigFields) -> ModelConfig:
    fields.refuse("add_cross_attention", "attention to another sequence")
    fields.refuse("scale_attn_by_inverse_layer_idx", "attention scale of each layer")
    return ModelConfig(
        **_common(fields, tied=True),
        rotary=None,
        learned_positions=fields.size("n_positions", 1024),
        attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        biases=("q", "kv", "o", "in", "out", "norm"),
    )


def _bigcode_config(fields: ConfigFields) -> ModelConfig:
    fields = fields.with_defaults(activation_function="gelu_pytorch_tanh")
    kv_heads = 1 if fields.flag("multi_query", True) else fields.size("n_head")
    return dataclasses.replace(_gpt2_config(fields), kv_heads=kv_heads)


def _gptj_config(fields: ConfigFields) -> ModelConfig:
    common = _common(fields, tied=False)
    d_head = common["d_head"]
    return ModelConfig(
        **common,
        block="parallel",
        rotary=rotary_of(
            fields,
            d_head,
            fraction=fields.size("rotary_dim", d_head) / d_head,
            interleaved=True,
        ),
        biases=("in", "out", "norm", "unembedding"),
    )


def _neox_biases(fields: ConfigFields) -> tuple[Biased, ...]:
    """Of the checkpoint."""
    attention: tuple[Biased, ...] = ("q", "kv", "o")
    return (*(attention if fields.flag("attention_bias", True) else ()), "in", "out", "norm")


def _is_parallel(fields: ConfigFields) -> bool:
    return fields.flag("use_parallel_residual", True)


def _neox_config(fields: ConfigFields) -> ModelConfig:
    heads, d_model = fields.size("num_attention_heads"), fields.size("hidden_size")
    common = common_fields(fields, epsilon=("layer_norm_eps", 1e-5))
    common |= {
        "activation": fields.activation(default="gelu"),
        "kv_heads": heads,
        "d_head": d_model // heads,
    }
    parallel = _is_parallel(fields)
    # Folding the norms of a parallel block makes biases.
    folded = ("q", "kv") if parallel else ()
    return ModelConfig(
        **common,
        block="parallel" if parallel else "serial",
        gated=False,
        norm="layernorm",
        rotary=rotary_of(
            fields,
            common["d_head"],
            base=fields.number("rotary_emb_base", 10000.0),
            fraction=fields.number("rotary_pct", 0.25),
        ),
        biases=(*_neox_biases(fields), *folded),
    )


def _neox_modules(fields: ConfigFields) -> Modules:
    layer = "gpt_neox.layers.{layer}."
    fused = Fused(layer + "attention.query_key_value", "groups")
    first, second = layer + "input_layernorm", layer + "post_attention_layernorm"
    norms = {"norm": first, "norm_ffn": second}
    if _is_parallel(fields):
        norms = {"norm": TwoNorms(first, second, _neox_biases(fields))}
    return {
        "embedding": "gpt_neox.embed_in",
        "final_norm": "gpt_neox.final_layer_norm",
        "unembedding": "embed_out",
        **dict.fromkeys(("q", "k", "v"), fused),
        "o": layer + "attention.dense",
        "in": layer + "mlp.dense_h_to_4h",
        "out": layer + "mlp.dense_4h_to_h",
        **norms,
    }


_LAYER = "transformer.h.{layer}."
_GPT2: Modules = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "unembedding": "lm_head",
    "norm": _LAYER + "ln_1",
    "norm_ffn": _LAYER + "ln_2",
    **dict.fromkeys(("q", "k", "v"), Untransposed(Fused(_LAYER + "attn.c_attn", "kinds"))),
    "o": Untransposed(_LAYER + "attn.c_proj"),
    "in": Untransposed(_LAYER + "mlp.c_fc"),
    "out": Untransposed(_LAYER + "mlp.c_proj"),
}
GPT2 = Family(("gpt2",), _gpt2_config, _GPT2, BUFFERS, base_prefix="transformer.")
GPT_BIGCODE = Family(
    ("gpt_bigcode",),
    _bigcode_config,
    {
        **_GPT2,
        # One key and value, or those of each head behind its query.
        **dict.fromkeys(("q", "k", "v"), Fused(_LAYER + "attn.c_attn", "groups")),
        "o": _LAYER + "attn.c_proj",
        "in": _LAYER + "mlp.c_fc",
        "out": _LAYER + "mlp.c_proj",
    },
    BUFFERS,
    base_prefix="transformer.",
)
GPTJ = Family(
    ("gptj",),
    _gptj_config,
    {
        "embedding": "transformer.wte",
        "final_norm": "transformer.ln_f",
        "unembedding": "lm_head",
        "norm": "transformer.h.{layer}.ln_1",
        "q": "transformer.h.{layer}.attn.q_proj",
        "k": "transformer.h.{layer}.attn.k_proj",
        "v": "transformer.h.{layer}.attn.v_proj",
        "o": "transformer.h.{layer}.attn.out_proj",
        "in": "transformer.h.{layer}.mlp.fc_in",
        "out": "transformer.h.{layer}.mlp.fc_out",
    },
    BUFFERS,
)
GPT_NEOX = Family(("gpt_neox",), _neox_config, _neox_modules, BUFFERS)
