"""The models that have names: those of the paper, open ones, and tiny ones that run anywhere."""

from __future__ import annotations

import dataclasses

from collective_einsum.text import did_you_mean, plain, shown

from .config import ModelConfig
from .open_models import OPEN_MODELS
from .rotary import Rotary

# Sizes: table 1 of arXiv 2204.02311 and table D.1 of arXiv 2211.05102. SwiGLU, no biases, rotary
# embedding, tied embedding, parallel blocks: section 2 of arXiv 2204.02311.
PALM_8B = ModelConfig(
    name="palm-8b",
    layers=32,
    d_model=4096,
    d_ff=16384,
    heads=16,
    kv_heads=1,
    d_head=256,
    vocab=256128,
    block="parallel",
    rotary=Rotary(interleaved=True),
)
PALM_62B = dataclasses.replace(
    PALM_8B, name="palm-62b", layers=64, d_model=8192, d_ff=32768, heads=32
)
# The paper stores 64 heads, which divide over 64 chips (section 4 of arXiv 2211.05102). Here a mesh on
# which 48 do not divide takes those that `padded_for` adds.
PALM_540B = dataclasses.replace(
    PALM_8B,
    name="palm-540b",
    layers=118,
    d_model=18432,
    d_ff=73728,
    heads=48,
)
# Sizes: table D.1 of arXiv 2211.05102. The model of arXiv 2201.11990 has learned positions (a table
# of 0.04e9 parameters, no matmul); here it has rotary ones.
MT_NLG_530B = ModelConfig(
    name="mt-nlg-530b",
    layers=105,
    d_model=20480,
    d_ff=81920,
    heads=128,
    kv_heads=128,
    d_head=160,
    vocab=51200,
    block="serial",
    activation="gelu_tanh",
    gated=False,
    norm="layernorm",
    norm_epsilon=1e-5,
    biases=True,
)

# Small enough to run anywhere, and every size divides over 8 devices in any arrangement. Between
# them they take every branch that a config can take.
TINY_MULTIQUERY = ModelConfig(
    name="tiny-multiquery",
    layers=2,
    d_model=32,
    d_ff=64,
    heads=8,
    kv_heads=1,
    d_head=8,
    vocab=64,
    block="parallel",
    rotary=Rotary(interleaved=True),
)
TINY_PADDED = dataclasses.replace(TINY_MULTIQUERY, name="tiny-padded", heads=6, padded_heads=8)
TINY_GROUPED = dataclasses.replace(
    TINY_MULTIQUERY,
    name="tiny-grouped",
    kv_heads=2,
    block="serial",
    rotary=Rotary(base=500000.0),
    tied_embedding=False,
)
TINY_MULTIHEAD = dataclasses.replace(
    TINY_MULTIQUERY,
    name="tiny-multihead",
    kv_heads=8,
    block="serial",
    activation="gelu",
    gated=False,
    norm="layernorm",
    rotary=Rotary(fraction=0.5),
    biases=True,
)
TINY_GEGLU = dataclasses.replace(
    TINY_MULTIQUERY, name="tiny-geglu", kv_heads=4, activation="gelu_tanh", biases=True
)
TINY_RELU = dataclasses.replace(
    TINY_MULTIQUERY,
    name="tiny-relu",
    heads=4,
    kv_heads=4,
    padded_heads=8,
    activation="relu",
    gated=False,
    norm="layernorm",
    rotary=None,
    tied_embedding=False,
)

_NAMED = (
    *(PALM_8B, PALM_62B, PALM_540B, MT_NLG_530B),
    *OPEN_MODELS,
    *(TINY_MULTIQUERY, TINY_PADDED, TINY_GROUPED, TINY_MULTIHEAD, TINY_GEGLU, TINY_RELU),
)


def model(name: str) -> ModelConfig:
    """The config of a named model: "palm-540b" gives PALM_540B. Case and punctuation are ignored.

    Raises:
      ValueError: no model has this name.
    """
    for config in _NAMED:
        if isinstance(name, str) and plain(config.name) == plain(name):
            return config
    names = [config.name for config in _NAMED]
    raise ValueError(
        f"no model named {name!r}; there are {', '.join(names)}{did_you_mean(name, names)}"
    )


def as_config(config: object) -> ModelConfig:
    """The config itself, or that of a named model.

    Raises:
      ValueError: `config` is something else, or no model has this name.
    """
    if isinstance(config, ModelConfig):
        return config
    if isinstance(config, str):
        return model(config)
    raise ValueError(
        f"config={shown(config)} is no ModelConfig; give one, such as layouts.PALM_540B, or "
        'the name of a model, such as "palm-540b"'
    )
