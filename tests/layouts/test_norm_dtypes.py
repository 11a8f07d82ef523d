"""Norms and biases in float32 beside bfloat16 matrices, sharded against the reference."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIHEAD, TINY_PADDED
from layouts.models.params import MATRICES, TABLES, Params, activation_dtype, init, key_of

from .models import prompts

BATCH, LENGTH = 8, 5
LENGTHS = np.array([5, 1, 3, 4, 2, 5, 1, 4], np.int32)
# Less than a bfloat16 tells from 1: scales that are stored less 1 are 0 once they are rounded to it.
SCALE = 2.0**-10


def small(config: ModelConfig, **fields: Any) -> ModelConfig:
    """A config of small scales, in which tokens are no larger than what layers add to them."""
    return dataclasses.replace(config, norm_offset=1.0, embedding_scale=SCALE, **fields)


CASES = {
    "heads": (small(TINY_GROUPED, query_key_norm="rmsnorm"), (2, 2, 2), "WS 2D, heads"),
    "parallel": (small(TINY_PADDED), (2, 2, 2), "WG XY, batch xyz"),
    "layernorm": (
        small(TINY_MULTIHEAD, norm="layernorm", biases=("q", "kv", "o", "norm")),
        (1, 4, 2),
        "WS 2D batch, batch xyz",
    ),
    "after": (small(TINY_GROUPED, norm_placement="both"), (8, 1, 1), "WS 1D, batch xyz"),
}


def params_of(config: ModelConfig, vectors: Any) -> Params:
    """bfloat16 matrices, and norms and biases of another dtype, all scales being 1 to 2 SCALE."""

    def leaf(path: Any, x: jax.Array) -> jax.Array:
        name = key_of(path[-1])
        if name in (*MATRICES, *TABLES):
            return x.astype(jnp.bfloat16)
        if name[0] == "b":
            return (x * SCALE).astype(vectors)
        return (jnp.linspace(1, 1.5, x.size).reshape(x.shape) * SCALE - 1).astype(vectors)

    return jax.tree_util.tree_map_with_path(leaf, init(jax.random.key(0), config, jnp.float32))


def expected(params: Params, config: ModelConfig) -> np.ndarray:
    tokens = prompts(config, BATCH, LENGTH)
    logits, cache = reference.prefill(params, config, tokens, jnp.asarray(LENGTHS), 8)
    more, _ = reference.decode_step(params, config, tokens[:, 0], cache)
    return np.stack([logits, more])


@pytest.mark.slow
@pytest.mark.parametrize(("case", "int8"), [*((case, False) for case in CASES), ("heads", True)])
def test_as_the_reference(mesh_of: Any, case: str, int8: bool) -> None:
    config, shape, plan = CASES[case]
    mesh, params = mesh_of(shape, "xyz"), params_of(config, jnp.float32)
    rounded = params_of(config, jnp.bfloat16)
    if int8:
        params, rounded = layouts.quantize(params), layouts.quantize(rounded)
    assert activation_dtype(params) == jnp.bfloat16
    wanted = expected(params, config)
    largest = np.abs(wanted).max()
    assert np.abs(expected(rounded, config) - wanted).max() > 0.5 * largest
    placed = jax.device_put(
        params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
    )
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    cache = layouts.init_cache(config, mesh, BATCH, 8, plan=plan)
    logits, cache = layouts.prefill(config, mesh, placed, cache, tokens, lengths=LENGTHS, plan=plan)
    more, _ = layouts.decode_step(config, mesh, placed, cache, tokens[:, 0], plan=plan)
    found = np.stack([logits, more])
    assert np.abs(found - wanted).max() < 0.05 * largest


def test_generates(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    params = params_of(config, jnp.float32)
    placed = jax.device_put(
        params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
    )
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    drawn, _ = layouts.generate(config, mesh, placed, tokens, max_new_tokens=2, lengths=LENGTHS)
    assert drawn.shape == (BATCH, 2)
