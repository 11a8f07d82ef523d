"""Bytes sent, counted in programs whose traffic is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from collective_einsum.ruler.hlo.traffic import sent_bytes

# A shard of [2, 128] float32.
SHARD = 2 * 128 * 4


def rotate(x: jax.Array) -> jax.Array:
    return lax.ppermute(x, "x", [(i, (i + 1) % 8) for i in range(8)])


@pytest.mark.parametrize(
    ("function", "shards"),
    [
        (lambda x: x + 1, 0),
        (rotate, 1),
        (lambda x: lax.ppermute(x, "x", [(i, i) for i in range(8)]), 0),
        (lambda x: lax.fori_loop(0, 5, lambda _, y: rotate(y), x), 5),
        (lambda x: lax.all_gather(x, "x", tiled=True), 7),
        (lambda x: lax.psum(x, "x"), 7 / 4),
        (lambda x: lax.all_to_all(x, "x", 1, 0, tiled=True), 7 / 8),
        (lambda x: lax.psum_scatter(x, "x", scatter_dimension=1, tiled=True), 7 / 8),
    ],
)
def test_sent(function: Callable[..., Any], shards: float, mesh_of: Any) -> None:
    mapped = jax.shard_map(
        function, mesh=mesh_of((8,), ("x",)), in_specs=P("x"), out_specs=P("x"), check_vma=False
    )
    text = jax.jit(mapped).lower(jnp.zeros((16, 128))).compile().as_text()
    assert text is not None
    assert sent_bytes(text) == shards * SHARD


def test_only_the_busiest_counts(mesh_of: Any) -> None:
    def uneven(x: jax.Array) -> jax.Array:
        return lax.ppermute(lax.ppermute(x, "x", [(0, 1), (1, 2)]), "x", [(0, 3)])

    mapped = jax.shard_map(
        uneven, mesh=mesh_of((8,), ("x",)), in_specs=P("x"), out_specs=P("x"), check_vma=False
    )
    text = jax.jit(mapped).lower(jnp.zeros((16, 128))).compile().as_text()
    assert text is not None
    assert sent_bytes(text) == 2 * SHARD
