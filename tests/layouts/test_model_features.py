"""What open models have besides the paper's: each by itself, sharded against the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.models.config import AttentionKind, GateClamp, ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIHEAD, TINY_PADDED
from layouts.models.params import init
from layouts.models.rotary import (
    DividedScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    YarnScaling,
)
from tests.products import sampled

from .models import prompts

pytestmark = pytest.mark.slow

BATCH, LENGTH, ROOM = 4, 5, 8
LENGTHS = np.array([5, 1, 3, 4], np.int32)
PLACES = [
    ((2, 2, 2), "WS 2D, heads"),
    ((1, 4, 2), "WS 2D batch, batch xyz"),
    ((2, 2, 2), "WG XY, batch xyz"),
    ((8, 1, 1), "WS 1D, batch xyz"),
]


def grouped(**fields: Any) -> ModelConfig:
    return dataclasses.replace(TINY_GROUPED, **fields)


def scaled(scaling: Any) -> ModelConfig:
    return grouped(rotary=Rotary(base=100.0, scaling=scaling))


FEATURES = {
    "linear": scaled(LinearScaling(4.0)),
    "llama3": scaled(Llama3Scaling(8.0, 16)),
    "yarn": scaled(YarnScaling(8.0, 16)),
    "divided": scaled(DividedScaling((1.0, 1.5, 4.0, 8.0), 1.2)),
    "dynamic": scaled(DynamicScaling(4.0, ROOM - 3)),
    "dynamic, short": scaled(DynamicScaling(4.0, ROOM)),
    "longrope": scaled(LongRopeScaling(ROOM - 1, (1.0,) * 4, (1.0, 1.5, 4.0, 8.0), 1.2)),
    "longrope, short": scaled(LongRopeScaling(ROOM, (1.0, 1.1, 1.2, 2.0), (3.0,) * 4)),
    "clipped": grouped(clip_qkv=0.4, biases=("q", "kv")),
    "learned positions": grouped(rotary=None, learned_positions=ROOM, embedding_scale=1.5),
    "learned positions, other axes": grouped(rotary=None, vocab=62, learned_positions=3 * ROOM),
    "learned positions, one for all": grouped(rotary=None, learned_positions=9),
    "alibi": grouped(rotary=None, alibi=1.0),
    "alibi, 6 heads, padded": dataclasses.replace(TINY_PADDED, rotary=None, alibi=0.5),
    "alibi, multihead": dataclasses.replace(TINY_MULTIHEAD, rotary=None, alibi=1.0),
    "alibi, window": grouped(
        rotary=None, alibi=1.0, attention_kinds=(AttentionKind(window=3), AttentionKind())
    ),
    "norm of the embedding": grouped(embedding_norm=True, norm="layernorm", biases=("norm",)),
    "norm of the embedding, rms": dataclasses.replace(TINY_PADDED, embedding_norm=True),
    "sinks": grouped(sinks=True),
    "sinks, padded": dataclasses.replace(TINY_PADDED, sinks=True),
    "sinks, multihead": dataclasses.replace(TINY_MULTIHEAD, sinks=True),
    "clamped gate": grouped(gate_clamp=GateClamp(limit=0.4)),
    "clamped gate, parallel": dataclasses.replace(TINY_PADDED, gate_clamp=GateClamp(limit=0.5)),
    "relu squared": grouped(activation="relu_squared", gated=False),
    "norms after": grouped(norm_placement="after"),
    "norms before and after": grouped(norm_placement="both"),
    "layernorms after": grouped(norm_placement="after", norm="layernorm", biases=("norm",)),
    "1 + scale": grouped(norm_offset=1.0, query_key_norm="rmsnorm"),
    "queries and keys": grouped(query_key_norm="rmsnorm"),
    "queries and keys, layernorm": grouped(query_key_norm="layernorm"),
    "queries and keys, all heads": grouped(query_key_norm="rmsnorm", query_key_norm_span="heads"),
    "queries and keys, padded": dataclasses.replace(
        TINY_PADDED, query_key_norm="rmsnorm", query_key_norm_span="heads"
    ),
    "queries and keys, layernorm of all heads": grouped(
        query_key_norm="layernorm", query_key_norm_span="heads", biases=("q", "kv")
    ),
    "queries and keys, layernorm, padded": dataclasses.replace(
        TINY_PADDED, query_key_norm="layernorm", query_key_norm_span="heads"
    ),
    "queries and keys, padded, multihead": dataclasses.replace(
        TINY_MULTIHEAD,
        heads=6,
        kv_heads=6,
        padded_heads=8,
        query_key_norm="rmsnorm",
        query_key_norm_span="heads",
    ),
    "queries and keys, layernorm, multihead": dataclasses.replace(
        TINY_MULTIHEAD,
        heads=6,
        kv_heads=6,
        padded_heads=8,
        query_key_norm="layernorm",
        query_key_norm_span="heads",
    ),
    "biases of q and kv": grouped(biases=("q", "kv")),
    "biases of all": dataclasses.replace(
        TINY_MULTIHEAD,
        tied_embedding=False,
        biases=("q", "kv", "o", "in", "out", "norm", "unembedding"),
    ),
    "embedding scale": grouped(embedding_scale=5.5),
    "residual scale": grouped(residual_scale=0.25),
    "residual scale, parallel": dataclasses.replace(TINY_PADDED, residual_scale=0.25),
    "attention scale": grouped(attention_scale=1.5),
    "attention cap": grouped(attention_scale=1.5, attention_cap=0.7),
    "logit scale": grouped(logit_scale=0.2),
    "logit cap": grouped(logit_cap=1.5),
    "window": grouped(attention_kinds=(AttentionKind(window=3),)),
    "window of a position": grouped(attention_kinds=(AttentionKind(window=1),)),
    "window in every other layer": grouped(
        layers=4, attention_kinds=(AttentionKind(window=2), AttentionKind())
    ),
    "kinds that do not divide the layers": grouped(
        layers=5,
        attention_kinds=(
            AttentionKind(window=3, rotary=Rotary(base=50.0)),
            AttentionKind(window=4, rotary=None),
            AttentionKind(),
        ),
    ),
    "more kinds than layers": dataclasses.replace(
        TINY_PADDED,
        attention_kinds=tuple(AttentionKind(window=w, rotary=None) for w in (2, 3, 4)),
    ),
    "padded vocabulary": grouped(vocab=59, padded_vocab=64),
    "padded vocabulary, tied": dataclasses.replace(
        TINY_PADDED, vocab=59, padded_vocab=64, biases=("unembedding",)
    ),
}


def run(step: Any, prefill: Any, config: ModelConfig, cache: Any) -> list[np.ndarray]:
    logits, cache = prefill(cache)
    found = [np.asarray(logits)]
    for token in prompts(config, 2, BATCH, seed=1):
        logits, cache = step(cache, token)
        found.append(np.asarray(logits))
    return found


def expected(config: ModelConfig, params: Any) -> list[np.ndarray]:
    tokens = prompts(config, BATCH, LENGTH)
    return run(
        lambda cache, token: reference.decode_step(params, config, token, cache),
        lambda _: reference.prefill(params, config, tokens, jnp.asarray(LENGTHS), ROOM),
        config,
        None,
    )


# Of what has a feature and something else, every second one.
MIXED = [feature for feature in FEATURES if "," in feature]
FEW = [feature for feature in FEATURES if feature not in MIXED[1::2]]


@pytest.mark.parametrize(("feature", "place"), sampled(list(FEATURES), PLACES, few=FEW), ids=str)
def test_as_the_reference(mesh_of: Any, feature: str, place: Any) -> None:
    config, (shape, plan) = FEATURES[feature], place
    mesh = mesh_of(shape, "xyz")
    params = init(jax.random.key(0), config, jnp.float32)
    specs = layouts.param_specs(config, mesh, params)
    placed = jax.device_put(params, layouts.shardings(mesh, specs))
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
    found = run(
        lambda cache, token: layouts.decode_step(config, mesh, placed, cache, token, plan=plan),
        lambda cache: layouts.prefill(
            config, mesh, placed, cache, tokens, lengths=LENGTHS, plan=plan
        ),
        config,
        cache,
    )
    for one, other in zip(found, expected(config, params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def test_added_tokens_are_never_drawn(mesh_of: Any) -> None:
    config, mesh = FEATURES["padded vocabulary"], mesh_of((2, 2, 2), "xyz")
    params = layouts.init(config, mesh, jax.random.key(0), dtype=jnp.float32)
    hot = layouts.Sampling(temperature=50.0)
    drawn, _ = layouts.generate(
        config,
        mesh,
        params,
        np.zeros((8, 2), np.int32),
        max_new_tokens=40,
        sampling=hot,
        seeds=np.arange(8),
    )
    assert np.asarray(drawn).max() == config.vocab - 1
