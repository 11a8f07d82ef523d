"""What layers whose attention has a window cost: memory, reading the cache, and scores."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import collective_einsum as ce
import layouts
from collective_einsum.ruler.hlo import parse as hlo
from layouts import tuning
from layouts.cost.memory import cache_bytes
from layouts.cost.step_cost import Cost, cost
from layouts.cost.workload import load
from layouts.layers.attention_scores import Segment, attend
from layouts.layers.kv_cache import empty_cache
from layouts.models.config import AttentionKind, ModelConfig
from layouts.models.named_models import PALM_8B, TINY_GROUPED
from layouts.partitionings.padded_sizes import window_keys

from .test_work import dot_flops

CUBE = {"x": 2, "y": 2, "z": 2}
PLAN = "WS 2D batch, batch xyz"
CONTEXT, WINDOW = 32768, 4096


def windows(*given: int | None, base: ModelConfig = PALM_8B) -> ModelConfig:
    kinds = tuple(AttentionKind(window=window) for window in given)
    return dataclasses.replace(base, attention_kinds=kinds)


def of(config: ModelConfig, phase: str = "decode", length: int = CONTEXT, **asked: Any) -> Cost:
    asked = {"batch": 64, "context" if phase == "decode" else "length": length} | asked
    return cost(config, PLAN, CUBE, load(phase, **asked), ce.TPU_V4)


@pytest.mark.parametrize("cache", ["bf16", "int8"])
def test_a_window_costs_what_it_is(cache: str) -> None:
    """Memory, and what a step of decoding reads and takes: those of a context of the window's size."""
    window, short = of(windows(WINDOW), cache=cache), of(PALM_8B, length=WINDOW, cache=cache)
    full = of(PALM_8B, cache=cache)
    assert window.memory == short.memory
    assert window.memory.cache == full.memory.cache / 8
    assert window.cache_bytes == short.cache_bytes == full.cache_bytes / 8
    assert window.seconds == short.seconds < full.seconds


def test_layers_of_several_kinds_add_up() -> None:
    """Three layers of a group of four with a window, and one without."""
    every = WINDOW, WINDOW, WINDOW, None
    config = windows(*every, base=dataclasses.replace(PALM_8B, layers=10))
    base = dataclasses.replace(PALM_8B, layers=1)
    window, full, mixed = of(windows(WINDOW, base=base)), of(base), of(config)
    # Layers 3 and 7 of 10.
    for name in ("flops", "cache_bytes", "seconds", "weight_bytes", "hops"):
        one, other = getattr(window, name), getattr(full, name)
        assert getattr(mixed, name) == pytest.approx(8 * one + 2 * other), name
    cache = 8 * window.memory.cache + 2 * full.memory.cache
    assert mixed.memory.cache == pytest.approx(cache)


def test_a_window_of_all_positions_costs_as_none() -> None:
    for phase in ("decode", "prefill"):
        one, other = of(windows(CONTEXT), phase), of(PALM_8B, phase)
        assert dataclasses.replace(one, config=PALM_8B, items=()) == dataclasses.replace(
            other, items=()
        )


def test_memory_is_that_of_the_cache() -> None:
    """The bytes that the model counts are those of the arrays."""
    config = windows(40, None, 40, base=dataclasses.replace(TINY_GROUPED, layers=5))
    for int8 in (False, True):
        arrays = jax.eval_shape(lambda int8=int8: empty_cache(config, 3, 100, int8=int8))
        stored = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(arrays.stores))
        asked = load("decode", batch=3, context=100, cache="int8" if int8 else "bf16")
        found = cache_bytes(config, "WS 1D, heads", {"x": 1, "y": 1, "z": 1}, asked)
        assert found == stored


def test_the_planner_fits_more_into_windows() -> None:
    """A batch whose cache does not fit without windows."""

    asked: Any = {"phase": "decode", "batch": 1024, "context": CONTEXT}
    found = [
        layouts.plan(config, chip="v4", mesh_shape=(2, 2, 2), **asked).feasible
        for config in (windows(WINDOW), PALM_8B)
    ]
    assert found[0]
    assert not found[1]


@pytest.mark.parametrize("window", [None, 96])
def test_scores_of_a_prompt(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    """A long prompt's blocks of queries meet the keys of their windows only, which is what is priced."""
    monkeypatch.setattr(tuning, "WINDOW_BLOCK", 32)
    length, heads, d = 1024, 4, 8
    q = jax.ShapeDtypeStruct((1, length, heads, d), jnp.float32)
    kv = jax.ShapeDtypeStruct((1, 2, length, d), jnp.float32)

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        before = jnp.zeros((1,), jnp.int32)
        return attend(q, [Segment(k, v, causal=True, window=window, before=before)], TINY_GROUPED)

    module = hlo.parse(jax.jit(run).lower(q, kv, kv).compile().as_text() or "")
    keys = window_keys(window, length)
    assert keys == (length if window is None else 96 + 32)
    assert dot_flops(module, module.entry) == 4 * heads * length * keys * d
    short, long = (of(windows(window), "prefill", n, batch=1) for n in (4096, 65536))
    # In proportion to the prompt, or to its square.
    growth = long.attention_seconds / short.attention_seconds
    assert growth < 20 if window else growth > 100
