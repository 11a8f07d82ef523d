"""Rows cut by position: prompts of few sequences, against the reference and the other layouts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

import layouts
from collective_einsum.chips import compile_context as compiling
from layouts import reference, tuning
from layouts.layers import attention_scores as scores
from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    TINY_GROUPED,
    TINY_MULTIHEAD,
    TINY_MULTIQUERY,
    TINY_PADDED,
)
from layouts.models.params import init, quantize
from layouts.partitionings import row_order as rows
from layouts.partitionings.attention_placement import place

from .arrangements import BY_POSITION, MESHES
from .models import prompts

pytestmark = pytest.mark.slow

HEADS = layouts.HeadSharded()
READER = layouts.Partitioning(BY_POSITION, HEADS)
DECODER = layouts.Partitioning(layouts.WeightStationary2D(), HEADS)
LENGTH, ROOM = 8, 17
MODELS = (TINY_PADDED, TINY_GROUPED, TINY_MULTIQUERY, TINY_MULTIHEAD)
# Of a first chunk and of a second one; ends are on the first chip and on the last.
COUNTS = {1: [[8], [3]], 3: [[8, 1, 4], [3, 5, 0]]}
# Every model on a cube and on another mesh, with few sequences and one, and both kinds of weights.
CASES = [
    pytest.param(config, shape, (3, 1)[(i + j) % 2], i % 3 == j, id=f"{config.name}-{shape}")
    for i, config in enumerate(MODELS)
    for j, shape in enumerate(MESHES[:3])
    if j == 0 or (i + j) % 2
]


@functools.cache
def parameters(config: ModelConfig, int8: bool) -> Any:
    made = init(jax.random.key(0), config, jnp.float32)
    return quantize(made) if int8 else made


@functools.cache
def expected(config: ModelConfig, batch: int, int8: bool) -> list[np.ndarray]:
    """Logits after each of two chunks, and after one more token."""
    params, found = parameters(config, int8), []
    chunks = prompts(config, 2 * batch, LENGTH).reshape(2, batch, LENGTH)
    first, second = (jnp.asarray(each) for each in COUNTS[batch])
    logits, cache = reference.prefill(params, config, chunks[0], first, ROOM)
    found.append(np.asarray(logits))
    # The reference reads one chunk: what follows goes token by token.
    after = np.array(logits)
    for t in range(max(COUNTS[batch][1])):
        going = np.asarray(second) > t
        logits, moved = reference.decode_step(params, config, chunks[1][:, t], cache)
        choose = functools.partial(_where, going)
        cache = jax.tree.map(choose, moved, cache)
        after[going] = np.asarray(logits)[going]
    found.append(after)
    logits, _ = reference.decode_step(params, config, chunks[0][:, 0], cache)
    return [*found, np.asarray(logits)]


def _where(going: np.ndarray, new: jax.Array, old: jax.Array) -> jax.Array:
    """The new [batch] or [layers, batch, ...] of sequences that go on, the old of others."""
    shape = [1] * new.ndim
    shape[0 if new.ndim == 1 else 1] = len(going)
    return jnp.where(jnp.asarray(going).reshape(shape), new, old)


@pytest.mark.parametrize(("config", "shape", "batch", "int8"), CASES)
def test_decoder(mesh_of: Any, config: Any, shape: Any, batch: int, int8: bool) -> None:
    mesh, params = mesh_of(shape, "xyz"), parameters(config, int8)
    params = jax.device_put(
        params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
    )
    chunks = np.asarray(prompts(config, 2 * batch, LENGTH)).reshape(2, batch, LENGTH)
    cache = layouts.init_cache(config, mesh, batch, ROOM, plan=READER, dtype=jnp.float32)
    wanted = expected(config, batch, int8)
    for chunk, counts, logits in zip(chunks, COUNTS[batch], wanted, strict=False):
        found, cache = layouts.prefill(
            config, mesh, params, cache, chunk, lengths=np.array(counts), plan=READER
        )
        read = np.array(counts) > 0
        np.testing.assert_allclose(
            np.asarray(found)[read], logits[read], rtol=1e-4, atol=2e-5, err_msg=str(counts)
        )
    found, _ = layouts.decode_step(config, mesh, params, cache, chunks[0][:, 0], plan=DECODER)
    np.testing.assert_allclose(found, wanted[-1], rtol=1e-4, atol=2e-5)


def test_generate(mesh_of: Any) -> None:
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    params = parameters(config, int8=False)
    tokens = np.asarray(prompts(config, 2, 8))
    one, other = (
        layouts.generate(
            config, mesh, params, tokens, max_new_tokens=4, plan=DECODER, prefill_plan=reader
        )
        for reader in (READER, DECODER)
    )
    np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize("knowing", [False, True])
@pytest.mark.parametrize(
    ("layer", "config"),
    [
        (layouts.parallel_block, TINY_PADDED),
        (layouts.serial_block, TINY_GROUPED),
        (layouts.attention, TINY_MULTIHEAD),
    ],
    ids=["parallel", "serial", "attention"],
)
def test_layers_by_themselves(mesh_of: Any, layer: Any, config: Any, knowing: bool) -> None:
    """As with columns cut, also where collectives go directly."""
    mesh, batch = mesh_of((2, 2, 2), "xyz"), 2
    weights = jax.tree.map(lambda x: x[-1], parameters(config, int8=False)["blocks"])
    x = jax.random.normal(jax.random.key(1), (batch, 8, config.d_model))

    def run(layout: Any) -> Any:
        return jax.jit(lambda x, p: layer(x, p, config, layout, HEADS, mesh=mesh))(x, weights)

    with compiling.knowing_options() if knowing else contextlib.nullcontext():
        y, (keys, _) = run(BY_POSITION)
    truth, (true_keys, _) = run(layouts.WeightStationary2D())
    np.testing.assert_allclose(y, truth, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(keys.values, true_keys.values, rtol=1e-4, atol=1e-5)


@settings(max_examples=6, deadline=None)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 40))
def test_queries_of_a_part_of_the_positions(
    batch: int, parts: int, per_part: int, block: int
) -> None:
    """Each part's queries, a block at a time or all at once, as all of them together."""
    length = parts * per_part
    q, k, v = (
        jax.random.normal(jax.random.key(i), (batch, *shape))
        for i, shape in enumerate([(length, 2, 4), (1, length, 4), (1, length, 4)])
    )
    segments = [scores.Segment(k, v, causal=True)]
    config = dataclasses.replace(TINY_MULTIQUERY, d_head=4)
    whole = scores.attend(q, segments, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "SCORES_BYTES", block * 8 * batch)
        for first in range(0, length, per_part):
            own = q[:, first : first + per_part]
            found = scores.attend(own, segments, config, jnp.int32(first))
            np.testing.assert_allclose(
                found, whole[:, first : first + per_part], rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("layout", [BY_POSITION, layouts.WeightStationary2D()], ids=str)
def test_rows_and_back(layout: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (3, 4, 5))
    np.testing.assert_array_equal(rows.from_rows(rows.to_rows(x, layout), 3, layout), x)


def test_keys_are_projected_from_own_rows(mesh_of: Any) -> None:
    """Only the shared ones, which every chip of yz would otherwise make of the same rows."""
    sizes = {"x": 2, "y": 2, "z": 2}
    shared = place(TINY_MULTIQUERY, BY_POSITION, HEADS, sizes)
    assert (shared.keys_before_gather, shared.key_token_axes) == (True, (("x",), ("y", "z")))
    apart = place(TINY_MULTIHEAD, BY_POSITION, HEADS, sizes)
    assert (apart.keys_before_gather, apart.key_token_axes, apart.kv_axes) == (
        False,
        (("x",),),
        ("y", "z"),
    )


def test_refusals(mesh_of: Any) -> None:
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    assert layouts.activation_spec(BY_POSITION) == P(None, ("y", "z"), ("x",))
    with pytest.raises(ValueError, match="tokens are sharded one way; choose by_batch"):
        layouts.WeightStationary2D(by_batch=True, by_position=True)
    both = layouts.Partitioning(BY_POSITION, layouts.BatchSharded())
    with pytest.raises(ValueError, match=r"shards positions, and BatchSharded.*use HeadSharded"):
        layouts.lower_prefill(config, mesh, batch=8, length=8, plan=both)
    # Two positions over y and z, but not over x, by a layer itself.
    wide, weights = mesh_of((4, 2, 1), "xyz"), parameters(config, int8=False)["blocks"]
    x = jnp.zeros((4, 2, config.d_model))
    weights = jax.tree.map(lambda each: each[0], weights)
    with pytest.raises(ValueError, match=r"over \('x',\), 4 chips, which do not divide 2 of them"):
        layouts.parallel_block(x, weights, config, BY_POSITION, HEADS, mesh=wide)
    # Four positions divide over either, but not the one row of a chip of yz over x.
    one = jnp.zeros((1, 4, config.d_model))
    with pytest.raises(
        ValueError, match=r"of a chip's 1 tokens.*; pad prompts to a multiple of 8 "
    ):
        layouts.parallel_block(one, weights, config, BY_POSITION, HEADS, mesh=mesh)
    by_batch = layouts.WeightStationary2D(by_batch=True)
    with pytest.raises(ValueError, match=r"divide a batch of 1; make the batch a multiple of 4"):
        layouts.parallel_block(one, weights, config, by_batch, HEADS, mesh=mesh)


def test_steps_are_padded_to_what_cuts_them(mesh_of: Any) -> None:
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    for lowered in (
        layouts.lower_prefill(config, mesh, batch=1, length=6, plan=READER),
        layouts.lower_decode_step(config, mesh, batch=1, context=8, plan=READER),
    ):
        assert lowered.out_info[0].shape == (1, config.vocab)
