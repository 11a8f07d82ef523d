"""Attention and blocks by themselves: on global arrays, and inside a shard_map of the user."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
import layouts
from collective_einsum.chips import compile_context as compiling
from layouts import reference, tuning
from layouts.mesh.shard_map_entry import weight_specs_of
from layouts.models.cache import Entries
from layouts.models.config import ModelConfig
from layouts.models.functions import causal_mask, rotary_tables, rotate
from layouts.models.named_models import TINY_GEGLU, TINY_GROUPED, TINY_MULTIHEAD
from layouts.models.norms import normalize
from layouts.models.params import init
from layouts.partitionings.param_specs import block_specs
from tests.products import sampled

from .models import name

B, T, PAST = 8, 3, 4
LENGTHS = jnp.array([4, 0, 2, 3, 1, 4, 0, 2], jnp.int32)
PLANS = (
    (layouts.WeightStationary2D(), layouts.HeadSharded()),
    (layouts.WeightStationary2D(), layouts.BatchSharded()),
    (layouts.WeightStationary2D(by_batch=True), layouts.BatchSharded()),
    (layouts.WeightStationary2D(by_batch=True, all_reduce=True), layouts.BatchSharded()),
    (layouts.WeightStationary1D(), layouts.BatchSharded(("z",))),
    (layouts.WeightGathered(("x", "y")), layouts.HeadSharded()),
)


def one_layer(config: ModelConfig) -> Any:
    blocks = init(jax.random.key(0), config, jnp.float32)["blocks"]
    return jax.tree.map(lambda x: x[-1], blocks)


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def past_of(config: ModelConfig) -> tuple[Entries, Entries]:
    shape = (B, config.stored_kv_heads, PAST, config.d_head)
    return Entries(draw(1, *shape)), Entries(draw(2, *shape))


def call(layer: Any, mesh_of: Any, config: ModelConfig, plan: Any) -> Any:
    """The layer on global arrays, jitted: (x, weights, lengths, past) to its results."""
    mesh = mesh_of((2, 2, 2), "xyz")
    return jax.jit(
        lambda x, p, lengths, past: layer(
            x, p, config, *plan, lengths=lengths, past=past, mesh=mesh
        )
    )


def attended(
    y: jax.Array, p: Any, config: ModelConfig, past: Any, lengths: jax.Array = LENGTHS
) -> jax.Array:
    """The reference's attention of y [B, T, E] after some positions of a past."""
    positions = lengths[:, None] + jnp.arange(T)
    tables = config.rotary and rotary_tables(positions, config.rotary, config.d_head)
    kv = reference.project_heads(y, p, "kv", config)
    k, v = kv[:, :, 0::2], kv[:, :, 1::2]
    k = rotate(k, tables, config.rotary)
    rows = jnp.arange(B)[:, None]
    keys, values = (
        jnp.concatenate([jnp.swapaxes(old.values, 1, 2), jnp.zeros_like(new)], axis=1)
        .at[rows, positions]
        .set(new)
        for old, new in zip(past, (k, v), strict=True)
    )
    q = rotate(reference.project_heads(y, p, "q", config), tables, config.rotary)
    mask = causal_mask(positions, jnp.arange(PAST + T), lengths + T)
    o = reference.attend(q, keys, values, mask, config)
    return reference.project(o.reshape(*o.shape[:2], -1), p, "o")


@pytest.mark.parametrize(
    ("plan", "config"), sampled(PLANS, [TINY_GROUPED, TINY_MULTIHEAD]), ids=name
)
def test_attention(mesh_of: Any, config: Any, plan: Any) -> None:
    p, x, past = one_layer(config), draw(0, B, T, config.d_model), past_of(config)
    y, (new_k, _) = call(layouts.attention, mesh_of, config, plan)(x, p, LENGTHS, past)
    np.testing.assert_allclose(y, attended(x, p, config, past), rtol=1e-4, atol=1e-5)
    assert new_k.values.shape == (B, config.stored_kv_heads, T, config.d_head)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_parallel_block(mesh_of: Any, plan: Any) -> None:
    config = TINY_GEGLU
    p, x, past = one_layer(config), draw(0, B, T, config.d_model), past_of(config)
    found, _ = call(layouts.parallel_block, mesh_of, config, plan)(x, p, LENGTHS, past)
    y = normalize(x, p["norm"], config)
    expected = x + attended(y, p, config, past) + reference.feedforward(y, p, config)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("plan", "much"), sampled(PLANS[2:4] + PLANS[5:], [tuning.CHAIN_TO_ATTENTION, 0.0]), ids=str
)
def test_parallel_block_as_compiled_under_options(
    mesh_of: Any, plan: Any, much: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same numbers where collectives go directly, and attention comes before what waits for it. Of
    # operands as small as these "auto" makes few collectives; where they cost no fixed time, more.
    config = TINY_GEGLU
    chip = dataclasses.replace(ce.TPU_V4, hop_seconds=0.0, collective_seconds=0.0)
    monkeypatch.setattr(tuning, "CHAIN_TO_ATTENTION", much)
    p, x, past = one_layer(config), draw(0, B, T, config.d_model), past_of(config)
    run = call(layouts.parallel_block, mesh_of, config, plan)
    with compiling.for_chip(chip), compiling.knowing_options():
        lowered = run.lower(x, p, LENGTHS, past)
        found, _ = run(x, p, LENGTHS, past)
    rows = plan[0].inner_batch_axes == ("x",)
    text = lowered.as_text(debug_info=True)
    assert ("chunked 1, async" in text) == rows
    y = normalize(x, p["norm"], config)
    expected = x + attended(y, p, config, past) + reference.feedforward(y, p, config)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plan", PLANS[:2], ids=str)
def test_serial_block_inside_a_shard_map(mesh_of: Any, plan: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    p, x, past = one_layer(config), draw(0, B, T, config.d_model), past_of(config)
    spec = layouts.activation_spec(plan[0])
    batch = ("x", "y", "z") if plan[1] == layouts.BatchSharded() else None
    kv = "y" if batch is None else None
    held = jax.tree.map(lambda _: P(batch, kv, None, None), past[0])

    def body(x: jax.Array, p: Any, lengths: jax.Array, past: Any) -> jax.Array:
        return layouts.serial_block(x, p, config, *plan, lengths=lengths, past=past)[0]

    found = jax.jit(
        jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(
                spec,
                weight_specs_of(p, block_specs(config, dict(mesh.shape))),
                P(),
                (held, held),
            ),
            out_specs=spec,
        )
    )(x, p, LENGTHS, past)
    y = x + attended(normalize(x, p["norm"], config), p, config, past)
    expected = y + reference.feedforward(normalize(y, p["norm_ffn"], config), p, config)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_without_a_past(mesh_of: Any) -> None:
    config = TINY_GROUPED
    p, x = one_layer(config), draw(0, B, T, config.d_model)
    run = call(layouts.attention, mesh_of, config, PLANS[0])
    whole, _ = run(x, p, None, None)
    one, _ = run(x, p, jnp.zeros((B,), jnp.int32), past_of(config))
    np.testing.assert_allclose(whole, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names", [("w_in", "w_gate", "w_out"), ("w_q", "w_o", "w_in"), ("w_kv",)])
@pytest.mark.parametrize("plan", [PLANS[1], PLANS[2], PLANS[5]], ids=str)
def test_parallel_block_with_int8_weights_among_others(mesh_of: Any, plan: Any, names: Any) -> None:
    config = TINY_GEGLU
    p, x, past = one_layer(config), draw(0, B, T, config.d_model), past_of(config)
    # What a Quantized stands for does not matter.
    mixed = p | {name: ce.quantize(p[name], 0, stands_for=jnp.bfloat16) for name in names}
    found, _ = call(layouts.parallel_block, mesh_of, config, plan)(x, mixed, LENGTHS, past)
    plain = p | {name: ce.quantize(p[name], 0).dequantize() for name in names}
    y = normalize(x, p["norm"], config)
    expected = x + attended(y, plain, config, past) + reference.feedforward(y, plain, config)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
