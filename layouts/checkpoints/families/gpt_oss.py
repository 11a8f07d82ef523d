"""gpt-oss 20B and 120B."""

from __future__ import annotations

from ...models.config import Experts, GateClamp, ModelConfig
from ..config_fields import ConfigFields
from ..family import ExpertStack, Family, Modules, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import ATTENTION, BUFFERS, ENDS, NORMS

_MIXTURE = "model.layers.{layer}.mlp."


def _config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, d_head=64, epsilon=("rms_norm_eps", 1e-5))
    experts = Experts(
        fields.size("num_local_experts", 128),
        fields.size("num_experts_per_tok", 4),
        router_bias=True,
    )
    clamp = GateClamp(fields.number("swiglu_limit", 7.0), fields.number("swiglu_alpha", 1.702))
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"]),
        attention_kinds=fields.attention_kinds(("sliding_attention", "full_attention")),
        sinks=True,
        biases=biases_of(attention=fields.flag("attention_bias", True), feedforward=True),
        experts=experts,
        gate_clamp=clamp,
    )


def _modules(fields: ConfigFields) -> Modules:
    # Published in MXFP4; saved by transformers as numbers.
    packed = fields.get("quantization_config") is not None

    def stack(name: str, index: int = 0, of: int = 1) -> ExpertStack:
        tensor = f"{_MIXTURE}experts.{name}"
        return ExpertStack(tensor, f"{tensor}_bias", index, of, packed)

    return {
        **ENDS,
        **ATTENTION,
        **NORMS,
        "sinks": "model.layers.{layer}.self_attn.sinks",
        "router": _MIXTURE + "router",
        "gate": stack("gate_up_proj", 0, 2),
        "in": stack("gate_up_proj", 1, 2),
        "out": stack("down_proj"),
    }


GPT_OSS = Family(("gpt_oss",), _config, _modules, BUFFERS, quantized=("mxfp4",))
