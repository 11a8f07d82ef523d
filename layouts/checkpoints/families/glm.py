"""GLM-4 9B, and GLM-4 0414 with norms before and after."""

from __future__ import annotations

import dataclasses

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Part, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _glm_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, d_head=128, epsilon=("rms_norm_eps", 1.5625e-7))
    biased = fields.flag("attention_bias", True)
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"], fraction=0.5, interleaved=True),
        biases=biases_of(q=biased, kv=biased),
    )


def _glm4_config(fields: ConfigFields) -> ModelConfig:
    return dataclasses.replace(_glm_config(fields), norm_placement="both")


_MODULES = {
    **MODULES,
    "gate": Part("model.layers.{layer}.mlp.gate_up_proj", 0, 2),
    "in": Part("model.layers.{layer}.mlp.gate_up_proj", 1, 2),
}
GLM = Family(("glm",), _glm_config, _MODULES, BUFFERS)
GLM4 = Family(
    ("glm4",),
    _glm4_config,
    {
        **_MODULES,
        "norm_after": "model.layers.{layer}.post_self_attn_layernorm",
        "norm_after_ffn": "model.layers.{layer}.post_mlp_layernorm",
    },
    BUFFERS,
)
