"""Batches, prompts and caches of any size, which no layout, mesh or tile divides, against the reference
on what was asked for."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIHEAD, TINY_PADDED
from layouts.models.params import init, quantize
from layouts.models.stacked_params import unroll
from tests.products import mostly_exhaustive

from .arrangements import ATTENTIONS, BY_POSITION, FEEDFORWARDS
from .models import prompts

pytestmark = pytest.mark.slow

# Divides over 6 devices.
OF_SIX = dataclasses.replace(TINY_GROUPED, d_model=48, d_ff=96, heads=12, kv_heads=4)
MESHES = ((2, 2, 2), (1, 4, 2), (8, 1, 1), (2, 1, 3))
PAIRS = list(itertools.product(FEEDFORWARDS, ATTENTIONS))
ROOM = 13
# A chunk of which some sequences take nothing, one that follows it, and lengths that divide nothing.
CHUNKS = (5, 3)


@functools.cache
def parameters(config: ModelConfig) -> Any:
    return init(jax.random.key(0), config, jnp.float32)


def model_for(shape: tuple[int, ...], config: ModelConfig = TINY_GROUPED) -> ModelConfig:
    return OF_SIX if 3 in shape else config


def taken(batch: int, chunk: int, new: int) -> np.ndarray:
    """How many positions of a chunk each sequence takes; of none, nothing but the first has none."""
    return np.array([(new - i - chunk) % (new + 1) for i in range(batch)], np.int32)


@functools.cache
def expected(config: ModelConfig, batch: int, weights: str = "plain") -> list[np.ndarray]:
    """Logits after each chunk and after one more token; of sequences that read nothing, zeros."""
    params, found = parameters(config), []
    params = quantize(params) if weights == "int8" else params
    cache = reference.empty_cache(config, batch, ROOM, jnp.float32)
    for i, new in enumerate((*CHUNKS, 1)):
        counts = taken(batch, i, new) if i < len(CHUNKS) else np.ones(batch, np.int32)
        tokens = prompts(config, batch, new, seed=i)
        logits, cache = reference.extend(params, config, tokens, cache, jnp.asarray(counts))
        last = np.asarray(logits)[np.arange(batch), np.maximum(counts - 1, 0)]
        found.append(np.where(counts[:, None] > 0, last, 0))
    return found


def steps(
    config: ModelConfig, mesh: Any, params: Any, cache: Any, batch: int, plan: Any, decoder: Any
) -> list[np.ndarray]:
    """As `expected`, by the sharded decoder; the cache goes to another plan before the token."""
    found = []
    for i, new in enumerate(CHUNKS):
        counts = taken(batch, i, new)
        tokens = np.asarray(prompts(config, batch, new, seed=i))
        logits, cache = layouts.prefill(
            config, mesh, params, cache, tokens, lengths=counts, plan=plan
        )
        assert logits.shape == (batch, config.vocab)
        found.append(np.where(counts[:, None] > 0, np.asarray(logits), 0))
    if decoder != plan:
        cache = layouts.move_cache(config, mesh, cache, decoder)
    tokens = np.asarray(prompts(config, batch, 1, seed=len(CHUNKS)))[:, 0]
    logits, cache = layouts.decode_step(config, mesh, params, cache, tokens, plan=decoder)
    assert (cache.batch, cache.max_length) == (batch, ROOM)
    return [*found, np.asarray(logits)]


def check(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


def new_cache(config: ModelConfig, mesh: Any, batch: int, plan: Any = None, **how: Any) -> Any:
    return layouts.init_cache(config, mesh, batch, ROOM, plan=plan, dtype=jnp.float32, **how)


@pytest.mark.parametrize(
    ("batch", "length", "shape", "plan"),
    [
        (1, 12, (2, 2, 2), None),
        (3, 5, (2, 2, 2), None),
        (7, 3, (1, 4, 2), None),
        (5, 1, (8, 1, 1), None),
        (2, 7, (2, 1, 3), None),
        (1, 5, (2, 2, 2), layouts.Partitioning(BY_POSITION, layouts.HeadSharded())),
        (3, 6, (2, 2, 2), layouts.Partitioning(FEEDFORWARDS[6], layouts.BatchSharded())),
    ],
    ids=str,
)
def test_generate(mesh_of: Any, batch: int, length: int, shape: Any, plan: Any) -> None:
    config = model_for(shape)
    params, tokens = parameters(config), prompts(config, batch, length)
    found, counts = layouts.generate(
        config, mesh_of(shape, "xyz"), params, np.asarray(tokens), max_new_tokens=3, plan=plan
    )
    lengths = jnp.full((batch,), length, jnp.int32)
    wanted, _ = reference.generate(params, config, tokens, lengths, max_new_tokens=3)
    np.testing.assert_array_equal(found, wanted)
    assert counts.tolist() == [3] * batch


def test_generate_with_plans_that_pad_differently(mesh_of: Any) -> None:
    """A batch of 1, which the decoder's plan stores as 1 and the reader's as 4."""
    config, mesh = TINY_GROUPED, mesh_of((1, 4, 2), "xyz")
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())
    reader = layouts.Partitioning(layouts.WeightStationary2D(by_batch=True), layouts.HeadSharded())
    params, tokens = parameters(config), prompts(config, 1, 3)
    found, _ = layouts.generate(
        config, mesh, params, np.asarray(tokens), max_new_tokens=2, plan=plan, prefill_plan=reader
    )
    wanted, _ = reference.generate(
        params, config, tokens, jnp.array([3], jnp.int32), max_new_tokens=2
    )
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("batch", mostly_exhaustive(range(1, 10), (1, 2, 4, 7)))
def test_default_plans(mesh_of: Any, batch: int) -> None:
    shape = MESHES[batch % 4]
    config, mesh = model_for(shape), mesh_of(shape, "xyz")
    cache = new_cache(config, mesh, batch)
    found = steps(config, mesh, parameters(config), cache, batch, None, None)
    check(found, expected(config, batch))


@pytest.mark.parametrize(
    "place", mostly_exhaustive(range(0, len(PAIRS), 3), range(0, len(PAIRS), 6))
)
def test_named_plans(mesh_of: Any, place: int) -> None:
    """Pairs of layouts in turn, on meshes and with batches in turn."""
    shape, batch = MESHES[place // 3 % 4], 1 + place % 8
    config, mesh = model_for(shape), mesh_of(shape, "xyz")
    plan = layouts.Partitioning(*PAIRS[place])
    params = parameters(config)
    cache = new_cache(config, mesh, batch, plan)
    check(steps(config, mesh, params, cache, batch, plan, plan), expected(config, batch))


def test_positions_are_padded_where_they_are_cut(mesh_of: Any) -> None:
    """Also those of a single token, and of a cache that has no room for the padding."""
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    plan = layouts.Partitioning(BY_POSITION, layouts.HeadSharded())
    cache = new_cache(config, mesh, 3, plan)
    found = steps(config, mesh, parameters(config), cache, 3, plan, plan)
    check(found, expected(config, 3))


def test_moves_between_plans_that_pad_differently(mesh_of: Any) -> None:
    config, mesh = TINY_MULTIHEAD, mesh_of((2, 2, 2), "xyz")
    reader = layouts.Partitioning(layouts.WeightGathered(), layouts.BatchSharded())
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())
    for one, other in ((reader, plan), (plan, reader)):
        cache = new_cache(config, mesh, 3, one)
        found = steps(config, mesh, parameters(config), cache, 3, one, other)
        check(found, expected(config, 3))


@pytest.mark.parametrize("explicit", [False, True])
def test_a_cache_of_another_plan(mesh_of: Any, explicit: bool) -> None:
    """One whose batch the step's own plan cannot shard as it is stored."""
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz", explicit=explicit)
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
    heads = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())
    cache = new_cache(config, mesh, 5, heads)
    placed = layouts.shardings(mesh, layouts.param_specs(config, mesh))
    params = jax.device_put(parameters(config), placed)
    check(steps(config, mesh, params, cache, 5, plan, heads), expected(config, 5))


def test_unrolled(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    params = unroll(parameters(config))
    check(
        steps(config, mesh, params, new_cache(config, mesh, 3), 3, None, None),
        expected(config, 3),
    )


def test_int8_weights_and_cache(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
    params = quantize(parameters(config))
    cache = new_cache(config, mesh, 3, plan, int8=True)
    found = steps(config, mesh, params, cache, 3, plan, plan)
    for one, truth in zip(found, expected(config, 3, "int8"), strict=True):
        assert np.abs(one - truth).max() < 0.05 * truth.std()


@pytest.mark.parametrize("length", [1, 5, 33])
def test_a_prefix_ends_where_it_ends(mesh_of: Any, length: int) -> None:
    """What is stored behind it counts for nothing; it was read by a batch padded to eight."""
    config, mesh, batch = TINY_GROUPED, mesh_of((2, 2, 2), "xyz"), 3
    plan = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
    params, beginning = parameters(config), np.asarray(prompts(config, 1, length, seed=5))
    first = layouts.init_cache(config, mesh, 1, length, plan=plan, dtype=jnp.float32)
    _, first = layouts.prefill(config, mesh, params, first, beginning, plan=plan)
    prefix = layouts.shared_prefix(first)
    assert prefix.length == length
    cache = new_cache(config, mesh, batch, plan, prefix=prefix)
    tokens = np.asarray(prompts(config, batch, 4))
    logits, cache = layouts.prefill(config, mesh, params, cache, tokens, plan=plan)
    again, cache = layouts.decode_step(config, mesh, params, cache, tokens[:, 0], plan=plan)
    assert cache.prefix_length == length

    whole = np.concatenate([np.repeat(beginning, batch, axis=0), tokens], axis=1)
    lengths = jnp.full((batch,), length + 4, jnp.int32)
    wanted, plain = reference.prefill(params, config, jnp.asarray(whole), lengths, length + 5)
    after, _ = reference.decode_step(params, config, jnp.asarray(tokens[:, 0]), plain)
    check([np.asarray(logits), np.asarray(again)], [np.asarray(wanted), np.asarray(after)])


def test_the_longest_prompt_is_as_long_as_was_asked_for(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    params = parameters(config)
    with pytest.raises(ValueError, match=f"14 tokens do not fit a cache of {ROOM} positions"):
        layouts.prefill(config, mesh, params, new_cache(config, mesh, 3), np.ones((3, 14), int))
    tokens = prompts(config, 3, ROOM)
    logits, cache = layouts.prefill(
        config, mesh, params, new_cache(config, mesh, 3), np.asarray(tokens)
    )
    lengths = jnp.full((3,), ROOM, jnp.int32)
    wanted, _ = reference.prefill(params, config, tokens, lengths, ROOM)
    check([np.asarray(logits)], [np.asarray(wanted)])
    with pytest.raises(ValueError, match=f"sequence 0 has {ROOM} positions .*, but there is room"):
        layouts.decode_step(config, mesh, params, cache, np.ones(3, int))
