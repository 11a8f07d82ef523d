"""The decoder under jax's modes: the same logits and tokens as without."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIQUERY, TINY_PADDED
from tests.products import mostly_exhaustive

from .models import prompts

pytestmark = pytest.mark.slow

# More sequences than are written without a loop.
BATCH, LENGTH, NEW = 24, 4, 3
LENGTHS = np.array([4, 1, 3, 2] * 6, np.int32)
SEEDS = np.arange(BATCH, dtype=np.uint32)
PLANS = (
    layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded(("y", "z"))),
    layouts.Partitioning(layouts.WeightGathered(("x", "y")), layouts.HeadSharded()),
)
SAMPLINGS = (layouts.Sampling(), layouts.Sampling(1.0, top_k=20, top_p=0.9))
# Models, kinds of weights, how they are stored, whether the cache is int8, the plan, the sampling.
KINDS = (
    (TINY_GROUPED, "plain", False, False, None, SAMPLINGS[1]),
    (TINY_GROUPED, "plain", True, False, PLANS[0], SAMPLINGS[0]),
    (TINY_PADDED, "int8", False, True, PLANS[1], SAMPLINGS[1]),
)
Kind = tuple[ModelConfig, str, bool, bool, Any, layouts.Sampling]
Mode = Callable[[], AbstractContextManager[Any]]


@contextlib.contextmanager
def promoting_x64() -> Any:
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        yield


MODES: dict[str, Mode] = {
    "x64": lambda: jax.enable_x64(True),
    "promoting x64": promoting_x64,
    "debug_nans": lambda: jax.debug_nans(True),
    # What a step is given in numpy's arrays is put on the devices explicitly, and what it must see
    # is read back so.
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
}


# Made before the modes are entered.
KEY = jax.random.key(0)
TOKENS = {config: np.asarray(prompts(config, BATCH, LENGTH)) for config, *_ in KINDS}


def run(mesh: Any, kind: Kind) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Logits of a prefill, of a chunk after it and of a step, and what `generate` gives."""
    config, weights, unrolled, int8, plan, sampling = kind
    params = layouts.init(config, mesh, KEY, jnp.float32, weights=weights, unrolled=unrolled)
    tokens = TOKENS[config]
    cache = layouts.init_cache(config, mesh, BATCH, 10, plan=plan, dtype=jnp.float32, int8=int8)
    args, logits = (config, mesh, params), []
    for counts in (LENGTHS, LENGTHS // 2):
        found, cache = layouts.prefill(*args, cache, tokens, lengths=counts, plan=plan)
        logits.append(jax.device_get(found))
    found, cache = layouts.decode_step(*args, cache, tokens[:, 0], plan=plan)
    logits.append(jax.device_get(found))
    drawn = layouts.generate(
        *args,
        tokens,
        lengths=LENGTHS,
        max_new_tokens=NEW,
        sampling=sampling,
        seeds=SEEDS,
        end_tokens=(20, 46),
        plan=plan,
        int8_cache=int8,
    )
    return logits, [jax.device_get(each) for each in (*drawn, cache.lengths)]


@functools.cache
def plain(mesh: Any, kind: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return run(mesh, KINDS[kind])


# Modes and kinds, of which most runs take a few that have each of both.
MODES_OF_KINDS = (
    *(("x64", kind) for kind in range(len(KINDS))),
    *(("promoting x64", kind) for kind in (0, 1)),
    *(("debug_nans", kind) for kind in (0, 2)),
    *(("transfer_guard", kind) for kind in range(len(KINDS))),
)
FEW = (
    ("x64", 2),
    ("promoting x64", 1),
    ("debug_nans", 2),
    *(("transfer_guard", kind) for kind in (0, 1)),
)


@pytest.mark.parametrize("how", mostly_exhaustive(MODES_OF_KINDS, FEW), ids=str)
def test_gives_what_it_gives_without(mesh_of: Any, how: tuple[str, int]) -> None:
    mode, kind = how
    mesh = mesh_of((2, 2, 2), "xyz")
    wanted = plain(mesh, kind)
    with MODES[mode]():
        found = run(mesh, KINDS[kind])
    for one, other in zip(found[0], wanted[0], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert one.dtype == np.float32
    for one, other in zip(found[1], wanted[1], strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == np.int32


def test_generates_the_same_without_jit(mesh_of: Any) -> None:
    """A small one: every operation is compiled by itself."""
    config, mesh = dataclasses.replace(TINY_MULTIQUERY, layers=1), mesh_of((1, 1, 2), "xyz")
    params = layouts.init(config, mesh, KEY, jnp.float32)
    tokens = np.asarray(prompts(config, 2, 2))
    generate = functools.partial(
        layouts.generate,
        *(config, mesh, params, tokens),
        lengths=np.array([2, 1]),
        max_new_tokens=2,
        plan=layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded()),
    )
    wanted = generate()
    with jax.disable_jit():
        found = generate()
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_lowers_under_x64(mesh_of: Any, int8: bool, unrolled: bool) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    how: dict[str, Any] = {"int8_cache": int8, "unrolled": unrolled}
    weights = "int8" if int8 else "bf16"
    with jax.enable_x64(True):
        step = layouts.lower_decode_step(
            TINY_GROUPED, mesh, batch=BATCH, context=64, weights=weights, **how
        )
        reader = layouts.lower_prefill(
            TINY_GROUPED, mesh, batch=BATCH, length=64, weights=weights, **how
        )
    for lowered in (step, reader):
        # No array of it: only literals.
        assert not re.search(r"\dxf64", lowered.as_text())
