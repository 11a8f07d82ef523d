"""OPT, but for OPT-350M, whose norms stand behind the sums."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, PositionTable, biases_of
from .llama import BUFFERS


def _opt_config(fields: ConfigFields) -> ModelConfig:
    d_model, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    fields.refuse("do_layer_norm_before", "norm behind the sums", unless=(None, True))
    fields.refuse("_remove_final_layer_norm", "model without a last norm")
    fields.refuse("word_embed_proj_dim", "embedding of another width", unless=(None, d_model))
    fields.refuse("layer_norm_elementwise_affine", "norms without weights", unless=(None, True))
    biased = fields.flag("enable_bias", True)
    return ModelConfig(
        name=fields.name,
        layers=fields.size("num_hidden_layers"),
        d_model=d_model,
        d_ff=fields.size("ffn_dim"),
        heads=heads,
        kv_heads=heads,
        d_head=d_model // heads,
        vocab=fields.size("vocab_size"),
        activation=fields.activation("activation_function", "relu"),
        gated=False,
        norm="layernorm",
        norm_epsilon=1e-5,
        rotary=None,
        learned_positions=fields.size("max_position_embeddings", 2048),
        biases=biases_of(attention=biased, ungated=biased, norm=True),
        tied_embedding=fields.flag("tie_word_embeddings", True),
    )


_LAYER = "model.decoder.layers.{layer}."
OPT = Family(
    ("opt",),
    _opt_config,
    {
        "embedding": "model.decoder.embed_tokens",
        # The first two rows are not those of positions.
        "positions": PositionTable("model.decoder.embed_positions", 2),
        "final_norm": "model.decoder.final_layer_norm",
        "unembedding": "lm_head",
        "norm": _LAYER + "self_attn_layer_norm",
        "norm_ffn": _LAYER + "final_layer_norm",
        **{name: f"{_LAYER}self_attn.{name}_proj" for name in ("q", "k", "v")},
        "o": _LAYER + "self_attn.out_proj",
        "in": _LAYER + "fc1",
        "out": _LAYER + "fc2",
    },
    BUFFERS,
    base_prefix="model.",
)
