"""BLOOM and BLOOMZ."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Fused
from .llama import BUFFERS


def _bloom_config(fields: ConfigFields) -> ModelConfig:
    fields.refuse(
        "apply_residual_connection_post_layernorm", "residual connection from behind the norms"
    )
    # Names of older and newer versions.
    d_model = fields.size("hidden_size" if fields.get("hidden_size") else "n_embed")
    heads = fields.size("n_head" if fields.get("n_head") else "num_attention_heads")
    return ModelConfig(
        name=fields.name,
        layers=fields.size("n_layer" if fields.get("n_layer") else "num_hidden_layers"),
        d_model=d_model,
        d_ff=4 * d_model,
        heads=heads,
        kv_heads=heads,
        d_head=d_model // heads,
        vocab=fields.size("vocab_size"),
        activation="gelu_tanh",
        gated=False,
        norm="layernorm",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        rotary=None,
        alibi=1.0,
        embedding_norm=True,
        biases=("q", "kv", "o", "in", "out", "norm"),
        tied_embedding=fields.flag("tie_word_embeddings", True),
    )


_LAYER = "transformer.h.{layer}."
BLOOM = Family(
    ("bloom",),
    _bloom_config,
    {
        "embedding": "transformer.word_embeddings",
        "embedding_norm": "transformer.word_embeddings_layernorm",
        "final_norm": "transformer.ln_f",
        "unembedding": "lm_head",
        "norm": _LAYER + "input_layernorm",
        "norm_ffn": _LAYER + "post_attention_layernorm",
        **dict.fromkeys(
            ("q", "k", "v"), Fused(_LAYER + "self_attention.query_key_value", "groups")
        ),
        "o": _LAYER + "self_attention.dense",
        "in": _LAYER + "mlp.dense_h_to_4h",
        "out": _LAYER + "mlp.dense_4h_to_h",
    },
    BUFFERS,
    base_prefix="transformer.",
)
