"""Command-R, Command-R+, and Command R7B and A, whose full layers do not rotate."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, HeadNorm, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _cohere_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, tied=True, epsilon=("layer_norm_eps", 1e-5))
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"], base=500000.0, interleaved=True),
        block="parallel",
        norm="layernorm",
        biases=biases_of(attention=fields.flag("attention_bias", False)),
        query_key_norm="layernorm" if fields.flag("use_qk_norm", False) else None,
        logit_scale=fields.number("logit_scale", 0.0625),
    )


def _cohere2_config(fields: ConfigFields) -> ModelConfig:
    local_first = (None, "local_attn_first")
    fields.refuse("order_of_interleaved_layers", "other order of layers", unless=local_first)
    fields = fields.with_defaults(sliding_window=4096, max_position_embeddings=8192)
    common = common_fields(fields, tied=True, epsilon=("layer_norm_eps", 1e-5))
    rotary = rotary_of(fields, common["d_head"], interleaved=True)
    return ModelConfig(
        **common,
        # Only layers with a window rotate.
        rotary=None if fields.get("sliding_window") is None else rotary,
        attention_kinds=fields.attention_kinds(fields.window_pattern(4), full=None),
        block="parallel",
        norm="layernorm",
        biases=biases_of(attention=fields.flag("attention_bias", False)),
        logit_scale=fields.number("logit_scale", 0.0625),
    )


COHERE = Family(
    ("cohere",),
    _cohere_config,
    {
        **MODULES,
        "norm_q": HeadNorm("model.layers.{layer}.self_attn.q_norm", "rows"),
        "norm_k": HeadNorm("model.layers.{layer}.self_attn.k_norm", "rows"),
    },
    BUFFERS,
)
COHERE2 = Family(("cohere2",), _cohere2_config, MODULES, BUFFERS)
