"""The replay against an independent ruler, on a program with nothing asynchronous to choose."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from collective_einsum.chips.known_chips import TPU_V4
from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.replay.simulation import replay

pytestmark = pytest.mark.tpu

# Microseconds a layer, all and computing, of PaLM 540B's feedforward on 64 chips in bf16, by rows:
# timed once by a separate replay of the same compiler's schedules, written before this one. It had the
# compiler's estimates and hops alone.
ESTIMATES_ALONE = dataclasses.replace(
    TPU_V4, permute_seconds=0.0, collective_seconds=0.0, hbm_efficiency=1.0, hbm_fill_seconds=1.0
)
FIGURES = {64: (220, 168), 512: (580, 320)}
D_MODEL, D_FF, LAYERS = 18432, 73728, 4


@pytest.mark.parametrize("rows", FIGURES)
def test_weight_stationary_2d_feedforward(rows: int) -> None:
    slice_ = target("v4:4x4x4")
    mesh = slice_.mesh((4, 4, 4), ("x", "y", "z"))
    yz = ("y", "z")

    def layer(c: jax.Array, weights: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        w_up, w_gate, w_out = weights
        h = lax.all_gather(c, yz, axis=1, tiled=True)
        u, g = (
            lax.psum_scatter(h @ w, "x", scatter_dimension=1, tiled=True) for w in (w_up, w_gate)
        )
        a = lax.all_gather(jax.nn.silu(g) * u, "x", axis=1, tiled=True)
        return lax.psum_scatter(a @ w_out, yz, scatter_dimension=1, tiled=True), None

    def stack(c: jax.Array, *weights: jax.Array) -> jax.Array:
        return lax.scan(layer, c, weights)[0]

    activations, w_in, w_out = P(None, ("x", *yz)), P(None, "x", yz), P(None, yz, "x")
    specs = (activations, w_in, w_in, w_out)
    shapes = (
        (rows, D_MODEL),
        (LAYERS, D_MODEL, D_FF),
        (LAYERS, D_MODEL, D_FF),
        (LAYERS, D_FF, D_MODEL),
    )
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    mapped = jax.shard_map(stack, mesh=mesh, in_specs=specs, out_specs=activations)
    timeline = replay(slice_.compile(mapped, *arguments), mesh, ESTIMATES_ALONE)
    total, computing = FIGURES[rows]
    assert timeline.total_seconds / LAYERS == pytest.approx(total * 1e-6, rel=0.02)
    assert timeline.compute_seconds / LAYERS == pytest.approx(computing * 1e-6, rel=0.02)
    assert timeline.exposed_seconds == pytest.approx(timeline.communication_seconds)
