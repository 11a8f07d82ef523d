"""Layers whose attention has a window, and a cache that holds the window only: against the reference,
which keeps all positions and masks them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import layouts
from layouts import reference, tuning
from layouts.decoding import layer_loops
from layouts.layers import attention_scores, kv_cache
from layouts.models.config import AttentionKind, ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED
from layouts.models.params import init
from layouts.models.rotary import Rotary
from layouts.models.stacked_params import unroll
from tests.products import mostly_exhaustive, sampled

from .models import prompts

pytestmark = pytest.mark.slow

BATCH = 4
# Lengths of the chunks of a prompt, and how many of each count: more than a window at once, none, and
# few. Then tokens that go round a window several times.
CHUNKS = ((13, (13, 2, 7, 9)), (6, (6, 0, 1, 4)), (6, (3, 3, 2, 1)))
DECODED = 14
ROOM = 40

PLACES = [
    ((2, 2, 2), "WS 2D, heads"),
    ((1, 4, 2), "WS 2D batch, batch xyz"),
    ((2, 2, 2), "WG XY, batch xyz"),
    ((8, 1, 1), "WS 1D, batch z"),
]


def kinds(*windows: int | None, base: ModelConfig = TINY_GROUPED, layers: int = 2) -> ModelConfig:
    """A model whose layers have these windows in turn."""
    return dataclasses.replace(
        base, layers=layers, attention_kinds=tuple(AttentionKind(window=w) for w in windows)
    )


CONFIGS = {
    "one position": kinds(1),
    "five": kinds(5),
    "as a chunk": kinds(13),
    "longer than prompts": kinds(23),
    "every other layer": kinds(5, None, layers=5),
    "three kinds": dataclasses.replace(
        kinds(4, layers=7),
        attention_kinds=(
            AttentionKind(window=4, rotary=Rotary(base=50.0)),
            AttentionKind(window=9, rotary=None),
            AttentionKind(),
        ),
    ),
    "two kinds of one size": kinds(4, 3, None, 4, layers=6),
    "parallel": kinds(5, None, base=TINY_PADDED, layers=3),
    "longer than the cache": kinds(100, 3, layers=3),
}
CASES = sampled(list(CONFIGS), PLACES)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches of few positions, and blocks of few queries, as large models have of many."""
    monkeypatch.setattr(tuning, "CACHE_TILE", 4)
    monkeypatch.setattr(tuning, "WINDOW_BLOCK", 2)
    jax.clear_caches()
    yield
    jax.clear_caches()


def chunk(i: int, length: int, config: ModelConfig) -> np.ndarray:
    return np.asarray(prompts(config, BATCH, length, seed=10 + i))


def expected(config: ModelConfig, params: Any, start: np.ndarray | None = None) -> list[np.ndarray]:
    """Logits of every chunk and token, and whether they count; after a prompt that all share."""
    cache = reference.empty_cache(config, BATCH, ROOM + 40, jnp.float32)
    if start is not None:
        tokens = jnp.broadcast_to(jnp.asarray(start), (BATCH, len(start)))
        _, cache = reference.extend(params, config, tokens, cache, jnp.full(BATCH, len(start)))
    found = []
    for i, (length, counts) in enumerate(CHUNKS):
        new = jnp.asarray(counts, jnp.int32)
        logits, cache = reference.extend(
            params, config, jnp.asarray(chunk(i, length, config)), cache, new
        )
        found.append(np.asarray(logits)[np.arange(BATCH), np.asarray(counts) - 1])
    for token in chunk(9, DECODED, config).T:
        logits, cache = reference.decode_step(params, config, jnp.asarray(token), cache)
        found.append(np.asarray(logits))
    return found


def run(
    config: ModelConfig, mesh: Any, params: Any, plan: Any, cache: Any
) -> tuple[list[np.ndarray], Any]:
    found = []
    for i, (length, counts) in enumerate(CHUNKS):
        logits, cache = layouts.prefill(
            config,
            mesh,
            params,
            cache,
            chunk(i, length, config),
            lengths=np.asarray(counts),
            plan=plan,
        )
        found.append(np.asarray(logits))
    for token in chunk(9, DECODED, config).T:
        logits, cache = layouts.decode_step(config, mesh, params, cache, token, plan=plan)
        found.append(np.asarray(logits))
    return found, cache


def placed(config: ModelConfig, mesh: Any, params: Any) -> Any:
    specs = layouts.param_specs(config, mesh, params)
    return jax.device_put(params, layouts.shardings(mesh, specs))


def compare(found: list[np.ndarray], wanted: list[np.ndarray], tolerance: float = 2e-5) -> None:
    for i, (one, other) in enumerate(zip(found, wanted, strict=True)):
        counts = np.asarray(CHUNKS[i][1]) > 0 if i < len(CHUNKS) else slice(None)
        np.testing.assert_allclose(one[counts], other[counts], rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize(("name", "place"), CASES, ids=str)
def test_chunks_and_tokens(mesh_of: Any, name: str, place: Any) -> None:
    """Prompts read in several chunks, of which a sequence takes all, some or nothing, and tokens; where
    nothing has been written, there are NaNs."""
    config, (shape, plan) = CONFIGS[name], place
    mesh, params = mesh_of(shape, "xyz"), init(jax.random.key(0), config, jnp.float32)
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
    cache = cache.with_stores(jax.tree.map(lambda x: x + jnp.nan, cache.stores))
    weights = placed(config, mesh, params)
    wanted = expected(config, params)
    found, _ = run(config, mesh, weights, plan, cache)
    compare(found, wanted)


@pytest.mark.parametrize("name", ["every other layer", "three kinds"])
def test_unrolled(mesh_of: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Entries of all layers written at the end, sequences in a loop."""
    monkeypatch.setattr(tuning, "UNROLLED_WRITES", 0)
    config, plan = CONFIGS[name], "WS 2D, heads"
    mesh, params = mesh_of((2, 2, 2), "xyz"), init(jax.random.key(0), config, jnp.float32)
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
    found, _ = run(config, mesh, unroll(placed(config, mesh, params)), plan, cache)
    compare(found, expected(config, params))


@pytest.mark.parametrize(
    "plan",
    mostly_exhaustive(["WS 2D, heads", "WS 2D batch, batch xyz"], ["WS 2D batch, batch xyz"]),
)
def test_int8(mesh_of: Any, monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    """The same logits to the rounding of 8 bits, which is as large without windows; with tiles that are
    written together."""
    monkeypatch.setattr(kv_cache, "INT8_TILE", 4)
    config = CONFIGS["every other layer"]
    mesh, params = mesh_of((2, 2, 2), "xyz"), init(jax.random.key(0), config, jnp.float32)
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, int8=True)
    assert [pair[0].size for pair in cache.stores] == [ROOM, 8]
    found, _ = run(config, mesh, placed(config, mesh, params), plan, cache)
    wanted = expected(config, params)
    compare(found, wanted, 8e-2)
    masks_all = expected(kinds(6, None, layers=5), params)
    assert (
        max(np.abs(one - other).max() for one, other in zip(wanted, masks_all, strict=True)) > 0.2
    )


@pytest.mark.parametrize(
    "prefix",
    mostly_exhaustive(
        list(itertools.product(("WS 2D, heads", "WG XY, batch xyz"), (3, 11))),
        [("WG XY, batch xyz", 11)],
    ),
    ids=str,
)
def test_after_a_prefix(mesh_of: Any, prefix: tuple[str, int]) -> None:
    """A prefix shorter than the windows' stores and one that went round them, by all layers."""
    config, (plan, length) = CONFIGS["three kinds"], prefix
    mesh, params = mesh_of((2, 2, 2), "xyz"), init(jax.random.key(0), config, jnp.float32)
    weights, start = placed(config, mesh, params), np.arange(7, 7 + length)
    one = layouts.init_cache(config, mesh, 1, length, plan=plan, dtype=jnp.float32)
    _, one = layouts.prefill(config, mesh, weights, one, start[None], plan=plan)
    shared = layouts.shared_prefix(one)
    assert len(shared.stores) == (1 if length == 3 else 2)
    cache = layouts.init_cache(
        config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, prefix=shared
    )
    found, _ = run(config, mesh, weights, plan, cache)
    wanted = expected(config, params, start)
    compare(found, wanted)
    assert np.abs(found[0] - expected(config, params)[0]).max() > 1e-2


@pytest.mark.parametrize(
    "fault", mostly_exhaustive(["slots", "fill", "mask", "wide", "prefix"], ["slots", "mask"])
)
def test_would_see(mesh_of: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """The tests above see places that are not taken modulo the window's, prompts whose first positions
    are kept, masks of places rather than positions, a window one position wider, and a prefix that is
    not put in order."""
    config, plan = CONFIGS["every other layer"], "WS 2D, heads"
    mesh, params = mesh_of((2, 2, 2), "xyz"), init(jax.random.key(0), config, jnp.float32)
    weights, start = placed(config, mesh, params), np.arange(7, 18) if fault == "prefix" else None
    append = kv_cache.append
    if fault == "slots":
        monkeypatch.setattr(layer_loops, "append", lambda *a, rolls: append(*a, rolls=False))
    elif fault == "fill":
        monkeypatch.setattr(layer_loops, "fill", lambda *a: kv_cache.fill(*a[:3]))
    elif fault == "mask":
        monkeypatch.setattr(
            attention_scores,
            "_key_positions",
            lambda segment, scores: lax.broadcasted_iota(jnp.int32, scores.shape, 3),
        )
    prefix = None
    if start is not None:
        one = layouts.init_cache(config, mesh, 1, len(start), plan=plan, dtype=jnp.float32)
        _, one = layouts.prefill(config, mesh, weights, one, start[None], plan=plan)
        with monkeypatch.context() as patched:
            patched.setattr(jnp, "roll", lambda x, *_, **__: x)
            prefix = layouts.shared_prefix(one)
    cache = layouts.init_cache(
        config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32, prefix=prefix
    )
    found, _ = run(config, mesh, weights, plan, cache)
    wanted = expected(kinds(6, None, layers=5) if fault == "wide" else config, params, start)
    with pytest.raises(AssertionError):
        compare(found, wanted)


@pytest.mark.parametrize("plan", [None, "WS 2D batch, batch xyz"])
@pytest.mark.parametrize("name", ["every other layer", "as a chunk"])
def test_generate(mesh_of: Any, name: str, plan: str | None) -> None:
    """Prompts read by one program into the cache of another, and tokens that go round the windows."""
    config, mesh = CONFIGS[name], mesh_of((2, 2, 2), "xyz")
    params = init(jax.random.key(0), config, jnp.float32)
    tokens, lengths = prompts(config, BATCH, 11), np.array([11, 3, 8, 6], np.int32)
    found, _ = layouts.generate(
        config,
        mesh,
        placed(config, mesh, params),
        tokens,
        lengths=lengths,
        max_new_tokens=20,
        plan=plan,
        prefill_plan=None if plan is None else "WG XYZ, batch xyz",
    )
    wanted, _ = reference.generate(params, config, tokens, jnp.asarray(lengths), max_new_tokens=20)
    np.testing.assert_array_equal(found, wanted)


def test_prompts_read_into_the_cache_of_another_plan(mesh_of: Any) -> None:
    """By default, and then moved to a third."""
    config, mesh = CONFIGS["three kinds"], mesh_of((2, 2, 2), "xyz")
    params = init(jax.random.key(0), config, jnp.float32)
    weights, wanted = placed(config, mesh, params), expected(config, params)
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, dtype=jnp.float32)
    length, counts = CHUNKS[0]
    logits, cache = layouts.prefill(
        config, mesh, weights, cache, chunk(0, length, config), lengths=np.asarray(counts)
    )
    np.testing.assert_allclose(logits, wanted[0], rtol=1e-4, atol=2e-5)
    plan = "WS 2D batch, batch xyz"
    cache = layouts.move_cache(config, mesh, cache, plan)
    length, counts = CHUNKS[1]
    logits, cache = layouts.prefill(
        config,
        mesh,
        weights,
        cache,
        chunk(1, length, config),
        lengths=np.asarray(counts),
        plan=plan,
    )
    compare([wanted[0], np.asarray(logits)], wanted[:2])


def test_a_cache_holds_windows_only() -> None:
    """Full layers all positions, the others their windows, padded."""
    config = CONFIGS["three kinds"]
    cache = jax.eval_shape(lambda: kv_cache.empty_cache(config, BATCH, ROOM, jnp.float32))
    shapes = [pair[0].values.shape for pair in cache.stores]
    assert shapes == [(2, BATCH, 2, 40, 8), (2, BATCH, 2, 12, 8), (3, BATCH, 2, 4, 8)]


def test_another_models_cache_is_refused(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    one, other = CONFIGS["every other layer"], kinds(None, layers=5)
    params = layouts.init(one, mesh, jax.random.key(0), jnp.float32)
    cache = layouts.init_cache(other, mesh, BATCH, ROOM, dtype=jnp.float32)
    with pytest.raises(ValueError, match="needs 2: 2 layers of 40, 3 layers of 8 positions; make"):
        layouts.decode_step(one, mesh, params, cache, np.zeros(BATCH, np.int32))
