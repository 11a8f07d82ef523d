"""What stands behind a sequence's length, or in another sequence, counts for nothing."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.models.cache import Cache, Entries
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIHEAD, TINY_PADDED
from layouts.models.params import init

from .arrangements import ATTENTIONS, BY_POSITION, FEEDFORWARDS
from .models import prompts

pytestmark = pytest.mark.slow

BATCH, LENGTH, ROOM = 8, 4, 16
FIRST = np.array([4, 1, 3, 2, 4, 1, 2, 3], np.int32)
# Some sequences read none of the second chunk.
SECOND = np.array([2, 4, 0, 1, 3, 0, 4, 1], np.int32)
MODELS = (TINY_PADDED, TINY_GROUPED, TINY_MULTIHEAD)
POISONS = (np.nan, np.inf, -np.inf)
SLOT, PAD_TOKEN = 3, 9
# Every feedforward and every attention, with caches of floats and of integers.
PLANS = [
    *(
        layouts.Partitioning(feedforward, ATTENTIONS[i % len(ATTENTIONS)])
        for i, feedforward in enumerate(FEEDFORWARDS)
    ),
    layouts.Partitioning(BY_POSITION, layouts.HeadSharded()),
]
CASES = [
    pytest.param(
        plan, POISONS[i % 3], MODELS[i % 3], i % 2 == 1, id=f"{plan.feedforward}-{plan.attention}"
    )
    for i, plan in enumerate(PLANS)
]
PREFIX = 3


@functools.cache
def parameters(config: Any) -> Any:
    return init(jax.random.key(0), config, jnp.float32)


def placed(config: Any, mesh: Any) -> Any:
    made = parameters(config)
    return jax.device_put(made, layouts.shardings(mesh, layouts.param_specs(config, mesh, made)))


def decoder(plan: Any) -> Any:
    """The plan of single tokens, whose positions nothing can cut."""
    if plan.feedforward == BY_POSITION:
        return dataclasses.replace(plan, feedforward=layouts.WeightStationary2D())
    return plan


def poisoned(cache: Cache, poison: float, whole: int | None = None) -> Cache:
    """The cache, with something else behind each length, and in all of the slot `whole`."""

    def spoil(x: Any, value: float) -> Any:
        lengths = np.zeros(x.shape[1], np.int32)
        lengths[:BATCH] = cache.lengths
        if whole is not None:
            lengths[whole] = 0
        behind = np.arange(x.shape[3]) >= lengths[:, None]
        behind = behind.reshape(1, x.shape[1], 1, -1, *(1,) * (x.ndim - 4))
        return jnp.where(behind, jnp.asarray(value, x.dtype), x)

    def entries(each: Entries) -> Entries:
        if each.scale is None:
            return Entries(spoil(each.values, poison))
        return Entries(spoil(each.values, 127), spoil(each.scale, poison))

    return dataclasses.replace(cache, k=entries(cache.k), v=entries(cache.v))


def emptied(cache: Cache, slot: int) -> Cache:
    return dataclasses.replace(cache, lengths=cache.lengths.at[slot].set(0))


@pytest.mark.parametrize(("plan", "poison", "config", "int8"), CASES)
def test_steps(mesh_of: Any, plan: Any, poison: float, config: Any, int8: bool) -> None:
    """A prompt, a chunk after it and a token: as if zeros stood there; and a slot that held NaN."""
    mesh = mesh_of((2, 2, 2), "xyz")
    params, chunks = placed(config, mesh), np.asarray(prompts(config, 3 * BATCH, LENGTH))
    chunks = chunks.reshape(3, BATCH, LENGTH)

    def run(spoil: Any) -> list[np.ndarray]:
        cache = layouts.init_cache(
            config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, int8=int8
        )
        logits = []
        for chunk, counts in zip(chunks[:2], (FIRST, SECOND), strict=True):
            found, cache = layouts.prefill(
                config, mesh, params, spoil(cache), chunk, lengths=counts, plan=plan
            )
            logits.append(np.asarray(found)[counts > 0])
        found, cache = layouts.decode_step(
            config, mesh, params, spoil(cache), chunks[2, :, 0], plan=decoder(plan)
        )
        return [*logits, np.asarray(found)]

    def spoil(cache: Cache) -> Cache:
        return poisoned(cache, poison)

    clean, found = run(lambda cache: cache), run(spoil)
    assert np.isfinite(np.concatenate(clean)).all()
    for one, other in zip(found, clean, strict=True):
        np.testing.assert_array_equal(one, other)

    # A sequence of NaN spoils no other; and when another takes its place, not that either.
    def reuse(spoil: Any) -> list[np.ndarray]:
        cache = layouts.init_cache(
            config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, int8=int8
        )
        _, cache = layouts.prefill(config, mesh, params, cache, chunks[0], lengths=FIRST, plan=plan)
        counts = np.ones(BATCH, np.int32)
        beside, cache = layouts.prefill(
            config, mesh, params, spoil(cache), chunks[1], lengths=counts, plan=plan
        )
        after, _ = layouts.prefill(
            config, mesh, params, emptied(cache, SLOT), chunks[2], lengths=FIRST, plan=plan
        )
        return [np.asarray(beside), np.asarray(after)]

    (clean_beside, clean_after) = reuse(lambda cache: cache)
    (beside, after) = reuse(lambda cache: poisoned(cache, poison, whole=SLOT))
    assert np.isnan(beside[SLOT]).all()
    others = np.arange(BATCH) != SLOT
    np.testing.assert_array_equal(beside[others], clean_beside[others])
    np.testing.assert_array_equal(after, clean_after)


@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("plan", [PLANS[2], PLANS[-1]], ids=str)
def test_padding_tokens(mesh_of: Any, plan: Any, poison: float) -> None:
    """A token that stands only where prompts are padded may have any embedding."""
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    made = dict(parameters(config))
    tokens = np.where(np.arange(LENGTH) < FIRST[:, None], 1, PAD_TOKEN)

    def run(params: Any) -> list[np.ndarray]:
        params = jax.device_put(
            params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
        )
        cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
        first, cache = layouts.prefill(
            config, mesh, params, cache, tokens, lengths=FIRST, plan=plan
        )
        second, cache = layouts.prefill(
            config, mesh, params, cache, tokens, lengths=FIRST, plan=plan
        )
        token = np.ones(BATCH, np.int32)
        third, _ = layouts.decode_step(config, mesh, params, cache, token, plan=decoder(plan))
        return [np.asarray(each) for each in (first, second, third)]

    clean = run(made)
    found = run(made | {"embedding": made["embedding"].at[PAD_TOKEN].set(poison)})
    assert np.isfinite(np.concatenate(clean)).all()
    np.testing.assert_array_equal(found, clean)


@pytest.mark.parametrize("int8", [False, True])
def test_after_a_prefix(mesh_of: Any, int8: bool) -> None:
    config, mesh, plan = TINY_PADDED, mesh_of((2, 2, 2), "xyz"), PLANS[1]
    params, tokens = placed(config, mesh), np.asarray(prompts(config, BATCH, LENGTH))
    alone = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())

    def run(spoil: Any) -> list[np.ndarray]:
        one = layouts.init_cache(config, mesh, 1, PREFIX, plan=alone, dtype=jnp.float32, int8=int8)
        _, one = layouts.prefill(config, mesh, params, one, tokens[:1, :PREFIX], plan=alone)
        cache = layouts.init_cache(
            config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, int8=int8,
            prefix=layouts.shared_prefix(one),
        )  # fmt: skip
        first, cache = layouts.prefill(
            config, mesh, params, spoil(cache), tokens, lengths=FIRST, plan=plan
        )
        second, _ = layouts.decode_step(config, mesh, params, spoil(cache), tokens[:, 0], plan=plan)
        return [np.asarray(first), np.asarray(second)]

    for poison in POISONS:
        np.testing.assert_array_equal(
            run(lambda cache, poison=poison: poisoned(cache, poison)), run(lambda cache: cache)
        )


def test_of_the_reference() -> None:
    config, tokens = TINY_GROUPED, prompts(TINY_GROUPED, BATCH, LENGTH)
    _, cache = reference.prefill(parameters(config), config, tokens, jnp.asarray(FIRST), LENGTH + 1)
    behind = np.arange(LENGTH + 1) >= FIRST[:, None]
    spoilt = {
        name: jnp.where(behind[None, :, :, None, None], jnp.nan, cache[name]) for name in "kv"
    }
    clean, _ = reference.decode_step(parameters(config), config, tokens[:, 0], cache)
    found, _ = reference.decode_step(parameters(config), config, tokens[:, 0], cache | spoilt)
    np.testing.assert_array_equal(found, clean)
