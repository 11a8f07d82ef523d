"""GPT-J, and GPT-NeoX with Pythia and RedPajama."""

from __future__ import annotations

from ...models.config import Biased, ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Fused, Modules, TwoNorms, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS


def _gptj_config(fields: ConfigFields) -> ModelConfig:
    heads, d_model = fields.size("n_head"), fields.size("n_embd")
    d_head = d_model // heads
    return ModelConfig(
        name=fields.name,
        layers=fields.size("n_layer"),
        d_model=d_model,
        d_ff=fields.size("n_inner", 4 * d_model),
        heads=heads,
        kv_heads=heads,
        d_head=d_head,
        vocab=fields.size("vocab_size"),
        block="parallel",
        activation=fields.activation("activation_function", "gelu_new"),
        gated=False,
        norm="layernorm",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        rotary=rotary_of(
            fields,
            d_head,
            fraction=fields.size("rotary_dim", d_head) / d_head,
            interleaved=True,
        ),
        biases=("in", "out", "norm", "unembedding"),
        tied_embedding=fields.flag("tie_word_embeddings", False),
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
