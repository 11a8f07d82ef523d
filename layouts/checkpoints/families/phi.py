"""Phi-1, 1.5 and 2, which are parallel, and Phi-3, 3.5 and 4, which fuse matrices."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, Fused, Part, common_fields
from ..rotary_fields import rotary_of
from .llama import ATTENTION, BUFFERS, ENDS, MODULES


def _phi_config(fields: ConfigFields) -> ModelConfig:
    fields.refuse("qk_layernorm", "norm of queries and keys with a bias")
    common = common_fields(fields, epsilon=("layer_norm_eps", 1e-5))
    common["activation"] = fields.activation(default="gelu_new")
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"], fraction=0.5),
        block="parallel",
        gated=False,
        norm="layernorm",
        biases=("q", "kv", "o", "in", "out", "norm", "unembedding"),
    )


def _phi3_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, epsilon=("rms_norm_eps", 1e-5))
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        attention_kinds=fields.attention_kinds(),
    )


PHI = Family(
    ("phi",),
    _phi_config,
    {
        **ENDS,
        **ATTENTION,
        "final_norm": "model.final_layernorm",
        "norm": "model.layers.{layer}.input_layernorm",
        "o": "model.layers.{layer}.self_attn.dense",
        "in": "model.layers.{layer}.mlp.fc1",
        "out": "model.layers.{layer}.mlp.fc2",
    },
    BUFFERS,
)
_FUSED = Fused("model.layers.{layer}.self_attn.qkv_proj", "kinds")
PHI3 = Family(
    ("phi3",),
    _phi3_config,
    {
        **MODULES,
        **dict.fromkeys(("q", "k", "v"), _FUSED),
        "gate": Part("model.layers.{layer}.mlp.gate_up_proj", 0, 2),
        "in": Part("model.layers.{layer}.mlp.gate_up_proj", 1, 2),
    },
    BUFFERS,
)
