"""StableLM 3B, 2 1.6B and 2 12B."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, HeadNorm, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _stablelm_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, epsilon=("layer_norm_eps", 1e-5))
    biased = fields.flag("use_qkv_bias", False)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"], fraction=0.25),
        block="parallel" if fields.flag("use_parallel_residual", False) else "serial",
        norm="layernorm",
        biases=biases_of(q=biased, kv=biased, norm=True),
        query_key_norm="layernorm" if fields.flag("qk_layernorm", False) else None,
    )


STABLELM = Family(
    ("stablelm",),
    _stablelm_config,
    {
        **MODULES,
        "norm_q": HeadNorm("model.layers.{layer}.self_attn.q_layernorm.norms.{head}", "modules"),
        "norm_k": HeadNorm("model.layers.{layer}.self_attn.k_layernorm.norms.{head}", "modules"),
    },
    BUFFERS,
)
