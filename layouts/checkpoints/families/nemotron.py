"""Nemotron 3, 4 and Minitron."""

from __future__ import annotations

from ...models.config import ModelConfig
from ..config_fields import ConfigFields
from ..family import Family, biases_of, common_fields
from ..rotary_fields import rotary_of
from .llama import BUFFERS, MODULES


def _nemotron_config(fields: ConfigFields) -> ModelConfig:
    common = common_fields(fields, epsilon=("norm_eps", 1e-5))
    common["activation"] = fields.activation(default="relu2")
    return ModelConfig(
        **common,
        rotary=rotary_of(fields, common["d_head"], fraction=0.5),
        gated=False,
        norm="layernorm",
        # Scales are stored less 1.
        norm_offset=1.0,
        biases=biases_of(
            attention=fields.flag("attention_bias", False),
            ungated=fields.flag("mlp_bias", False),
            norm=True,
        ),
    )


NEMOTRON = Family(("nemotron",), _nemotron_config, MODULES, BUFFERS)
