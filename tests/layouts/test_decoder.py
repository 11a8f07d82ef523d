"""The sharded decoder against the reference: every pair of layouts, mesh and kind of weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    TINY_GROUPED,
    TINY_MULTIHEAD,
    TINY_MULTIQUERY,
    TINY_PADDED,
)
from layouts.models.params import init, quantize
from layouts.models.stacked_params import unroll
from tests.products import sampled

from .arrangements import ATTENTIONS, FEEDFORWARDS, MESHES
from .models import TINY, name, prompts

pytestmark = pytest.mark.slow

BATCH, LENGTH, ROOM = 8, 4, 7
# Ragged, one of them empty but for its first token.
LENGTHS = np.array([4, 1, 3, 2, 4, 1, 2, 3], np.int32)
PAIRS = [(feedforward, attention) for feedforward in FEEDFORWARDS for attention in ATTENTIONS]
# A parallel block with padded multiquery heads, and a serial one with grouped ones.
BLOCKS = (TINY_PADDED, TINY_GROUPED)
WEIGHTS = ("f32", "int8", "bf16")
KINDS = [(config, weights) for weights in WEIGHTS for config in BLOCKS]
# Each feedforward and each attention with several kinds and on several meshes.
OTHER_PLACES = [
    (pair, MESHES[1 + i % 3], *KINDS[(i + i // len(ATTENTIONS)) % len(KINDS)])
    for i, pair in enumerate(PAIRS)
]


@functools.cache
def parameters(config: ModelConfig, weights: str = "f32") -> Any:
    dtype = jnp.bfloat16 if weights == "bf16" else jnp.float32
    made = init(jax.random.key(0), config, dtype)
    return quantize(made) if weights == "int8" else made


@functools.cache
def expected(config: ModelConfig, weights: str = "f32") -> list[np.ndarray]:
    """Logits after the prompts and after each of two more tokens, in float32."""
    params = parameters(config, weights)
    if weights == "bf16":
        params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return run_reference(config, params)


@functools.cache
def rounded(config: ModelConfig) -> list[np.ndarray]:
    """The same in bfloat16, by one device."""
    return run_reference(config, parameters(config, "bf16"))


def run_reference(config: ModelConfig, params: Any) -> list[np.ndarray]:
    logits, cache = reference.prefill(
        params, config, prompts(config, BATCH, LENGTH), jnp.asarray(LENGTHS), ROOM
    )
    found = [np.asarray(logits)]
    for token in following(config):
        logits, cache = reference.decode_step(params, config, token, cache)
        found.append(np.asarray(logits))
    return found


def following(config: ModelConfig) -> list[jax.Array]:
    return list(prompts(config, 2, BATCH, seed=1))


def sharded(
    config: ModelConfig,
    mesh: Any,
    plan: Any,
    weights: str = "f32",
    prefill_plan: Any = None,
    **options: Any,
) -> list[np.ndarray]:
    """As `expected`, by the sharded decoder."""
    dtype = jnp.bfloat16 if weights == "bf16" else jnp.float32
    params = parameters(config, weights)
    params = jax.device_put(
        params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
    )
    reader = prefill_plan or plan
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=reader, dtype=dtype, **options)
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    logits, cache = layouts.prefill(
        config, mesh, params, cache, tokens, lengths=LENGTHS, plan=reader
    )
    found = [np.asarray(logits)]
    if prefill_plan is not None:
        cache = layouts.move_cache(config, mesh, cache, plan)
    for token in following(config):
        logits, cache = layouts.decode_step(config, mesh, params, cache, token, plan=plan)
        found.append(np.asarray(logits))
    assert cache.lengths.tolist() == (LENGTHS + 2).tolist()
    return found


def check(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def check_sharded(mesh: Any, pair: Any, config: ModelConfig, weights: str) -> None:
    found = sharded(config, mesh, layouts.Partitioning(*pair), weights)
    wanted = expected(config, weights)
    if weights != "bf16":
        return check(found, wanted)
    # Partial sums are rounded once more for every device they pass.
    for one, truth, alone in zip(found, wanted, rounded(config), strict=True):
        assert 0 < distance(one, truth) < 2 * distance(alone, truth)


def distance(one: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(one - truth))))


@pytest.mark.parametrize(("pair", "config"), sampled(PAIRS, BLOCKS), ids=name)
def test_every_pair_of_layouts(mesh_of: Any, pair: Any, config: Any) -> None:
    check_sharded(mesh_of((2, 2, 2), "xyz"), pair, config, "f32")


@pytest.mark.parametrize(("pair", "shape", "config", "weights"), OTHER_PLACES, ids=name)
def test_other_meshes(mesh_of: Any, pair: Any, shape: Any, config: Any, weights: str) -> None:
    """Pairs of layouts on meshes in turn, with blocks and weights in turn."""
    check_sharded(mesh_of(shape, "xyz"), pair, config, weights)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("config", "weights"), KINDS, ids=name)
@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_every_combination(mesh_of: Any, pair: Any, shape: Any, config: Any, weights: str) -> None:
    check_sharded(mesh_of(shape, "xyz"), pair, config, weights)


@pytest.mark.parametrize("config", [c for c in TINY if c not in BLOCKS], ids=name)
def test_every_model(mesh_of: Any, config: Any) -> None:
    pair = layouts.WeightStationary2D(), layouts.BatchSharded()
    check_sharded(mesh_of((2, 2, 2), "xyz"), pair, config, "f32")


@pytest.mark.parametrize("attention", ATTENTIONS, ids=str)
def test_multihead(mesh_of: Any, attention: Any) -> None:
    pair = layouts.WeightStationary2D(), attention
    check_sharded(mesh_of((2, 2, 2), "xyz"), pair, TINY_MULTIHEAD, "f32")


def test_int8_cache_is_near_the_truth(mesh_of: Any) -> None:
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
    mesh = mesh_of((2, 2, 2), "xyz")
    found = sharded(TINY_GROUPED, mesh, plan, int8=True)
    for one, truth in zip(found, expected(TINY_GROUPED), strict=True):
        assert np.abs(one - truth).max() < 0.05 * truth.std()
    # What was read from the cache was rounded.
    assert np.abs(found[1] - expected(TINY_GROUPED)[1]).max() > 1e-4


def test_one_copy_of_weights_serves_two_layouts(mesh_of: Any) -> None:
    """Prefill weight-gathered, decode weight-stationary: the same arrays, and the same logits."""
    reader = layouts.Partitioning(layouts.WeightGathered(), layouts.HeadSharded())
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())
    mesh = mesh_of((2, 2, 2), "xyz")
    check(sharded(TINY_GROUPED, mesh, plan, prefill_plan=reader), expected(TINY_GROUPED))


@pytest.mark.parametrize("attention", [ATTENTIONS[0], ATTENTIONS[3]], ids=str)
@pytest.mark.parametrize("cuts", [(4,), (1, 3), (2, 2), (1, 1, 1, 1)], ids=str)
def test_a_prompt_may_be_read_in_chunks(mesh_of: Any, cuts: Any, attention: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    plan = layouts.Partitioning(layouts.WeightStationary2D(), attention)
    params = parameters(config)
    # No room behind the longest prompt: padding must not be written where it would not fit.
    cache = layouts.init_cache(config, mesh, BATCH, LENGTH, plan=plan, dtype=jnp.float32)
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    last = np.zeros((BATCH, config.vocab), np.float32)
    start = 0
    for cut in cuts:
        counts = np.clip(LENGTHS - start, 0, cut)
        logits, cache = layouts.prefill(
            config, mesh, params, cache, tokens[:, start : start + cut], lengths=counts, plan=plan
        )
        ends = (counts > 0) & (start + cut >= LENGTHS)
        last[ends] = np.asarray(logits)[ends]
        start += cut
    np.testing.assert_allclose(last, expected(config)[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("attention", "unrolled"),
    [*((each, False) for each in [ATTENTIONS[0], ATTENTIONS[3]]), (layouts.HeadSharded(), True)],
    ids=str,
)
def test_a_shared_prefix_is_read_by_all(mesh_of: Any, attention: Any, unrolled: bool) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    one = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())
    plan = layouts.Partitioning(layouts.WeightStationary2D(), attention)
    stacked, beginning = parameters(config), np.asarray(prompts(config, 1, 3, seed=5))
    params = unroll(stacked) if unrolled else stacked
    first = layouts.init_cache(config, mesh, 1, 3, plan=one, dtype=jnp.float32)
    _, first = layouts.prefill(config, mesh, params, first, beginning, plan=one)
    prefix = layouts.shared_prefix(first)
    cache = layouts.init_cache(
        config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, prefix=prefix
    )
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    logits, cache = layouts.prefill(config, mesh, params, cache, tokens, lengths=LENGTHS, plan=plan)
    found = [logits]
    for token in following(config):
        logits, cache = layouts.decode_step(config, mesh, params, cache, token, plan=plan)
        found.append(logits)
    assert cache.prefix_length == 3
    assert cache.max_length == ROOM

    whole = np.concatenate([np.repeat(beginning, BATCH, axis=0), tokens], axis=1)
    logits, plain = reference.prefill(
        stacked, config, jnp.asarray(whole), jnp.asarray(LENGTHS + 3), ROOM + 3
    )
    wanted = [logits]
    for token in following(config):
        logits, plain = reference.decode_step(stacked, config, token, plain)
        wanted.append(logits)
    check([np.asarray(x) for x in found], [np.asarray(x) for x in wanted])


def test_explicit_axes(mesh_of: Any) -> None:
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
    mesh = mesh_of((2, 2, 2), "xyz", explicit=True)
    check(sharded(TINY_PADDED, mesh, plan), expected(TINY_PADDED))


def test_parameters_are_made_where_they_stay(mesh_of: Any) -> None:
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    made = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, made, parameters(config))
    w_in = made["blocks"]["w_in"]
    assert w_in.sharding.shard_shape(w_in.shape) == (
        config.layers,
        config.d_model // 2,
        config.d_ff // 4,
    )
    table = made["embedding"]
    assert table.sharding.shard_shape(table.shape) == (config.vocab // 8, config.d_model)
