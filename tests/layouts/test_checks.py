"""Everything that a step refuses, in words, before it runs, with the cache left as it was."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIQUERY
from layouts.models.params import init

BATCH, ROOM = 8, 4
PLAN = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())


@pytest.fixture(scope="module")
def mesh(mesh_of: Any) -> Any:
    return mesh_of((2, 2, 2), "xyz")


@pytest.fixture(scope="module")
def params() -> Any:
    return init(jax.random.key(0), TINY_GROUPED, jnp.float32)


@pytest.fixture
def cache(mesh: Any) -> Any:
    return layouts.init_cache(TINY_GROUPED, mesh, BATCH, ROOM, plan=PLAN, dtype=jnp.float32)


def tokens(length: int = 2, value: int = 1) -> np.ndarray:
    return np.full((BATCH, length), value, np.int32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"tokens": tokens(value=64)}, "token 64 is not in the vocabulary of .* 0 to 63"),
        ({"tokens": tokens(value=-1)}, "token -1 is not in the vocabulary"),
        ({"tokens": tokens().astype(np.float32)}, "tokens must be integers, got float32"),
        ({"tokens": tokens(5)}, "5 tokens do not fit a cache of 4 positions; .* max_length=5"),
        ({"tokens": tokens()[:6]}, r"cache.lengths has shape \(8,\), but tokens are of 6 seq"),
        ({"tokens": np.zeros((16, 2), np.int32)}, r"for a batch of 16"),
        ({"tokens": tokens(0)}, "neither of them 0"),
        ({"lengths": np.array([3] * BATCH)}, "lengths must be between 0 and 2"),
        ({"lengths": np.array([1, 2])}, r"lengths of shape \(2,\) must be \(8,\)"),
        ({"config": TINY_MULTIQUERY}, "params"),
    ],
)
def test_prefill_refuses(mesh: Any, params: Any, cache: Any, given: Any, message: str) -> None:
    arguments = {"config": TINY_GROUPED, "tokens": tokens(), "lengths": None} | given
    with pytest.raises(ValueError, match=message):
        layouts.prefill(
            arguments["config"],
            mesh,
            params,
            cache,
            arguments["tokens"],
            lengths=arguments["lengths"],
            plan=PLAN,
        )
    # Not donated: it can still be read, and nothing is in it.
    assert not np.asarray(cache.lengths).any()
    assert not np.asarray(cache.k.values).any()


def test_a_full_cache_takes_no_more_tokens(mesh: Any, params: Any, cache: Any) -> None:
    lengths = np.array([4, 1, 1, 1, 1, 1, 1, 1])
    _, cache = layouts.prefill(
        TINY_GROUPED, mesh, params, cache, tokens(4), lengths=lengths, plan=PLAN
    )
    with pytest.raises(ValueError, match=r"sequence 0 has 4 positions .* and 1 to come, .* 4;"):
        layouts.decode_step(TINY_GROUPED, mesh, params, cache, tokens(1)[:, 0], plan=PLAN)
    assert np.asarray(cache.lengths).tolist() == lengths.tolist()


def test_a_mesh_without_the_axes(mesh_of: Any) -> None:
    with pytest.raises(ValueError, match=r"axes \('x', 'y', 'z'\), got \('data', 'model'\)"):
        layouts.init(TINY_GROUPED, mesh_of((2, 4), ("data", "model")), jax.random.key(0))


def test_a_mesh_that_does_not_divide_the_model(mesh_of: Any) -> None:
    with pytest.raises(
        ValueError, match="d_model=32 does not divide over the 3 chips of a mesh 1x1x3"
    ):
        layouts.init(TINY_GROUPED, mesh_of((1, 1, 3), "xyz"), jax.random.key(0))


def test_an_unknown_kind_of_weights(mesh: Any) -> None:
    with pytest.raises(ValueError, match="weights='int4' must be one of 'plain', 'int8'"):
        layouts.init(TINY_GROUPED, mesh, jax.random.key(0), weights="int4")


def test_a_cache_of_another_model(mesh: Any, params: Any) -> None:
    other = dataclasses.replace(TINY_GROUPED, kv_heads=4)
    cache = layouts.init_cache(other, mesh, 3, ROOM, plan=PLAN)
    with pytest.raises(ValueError, match=r"cache.k has shape \(2, 8, 4, 32, 8\), but tiny-grouped"):
        layouts.prefill(TINY_GROUPED, mesh, params, cache, tokens()[:3], plan=PLAN)


def test_int8_parameters_are_made_in_place(mesh: Any) -> None:
    made = layouts.init(TINY_GROUPED, mesh, jax.random.key(0), weights="int8")
    w_in = made["blocks"]["w_in"]
    assert w_in.values.dtype == jnp.int8
    assert w_in.values.sharding.shard_shape(w_in.shape)[1] == TINY_GROUPED.d_model // 2
