"""vmap over an einsum of global arrays whose batch is sharded by spmd_axis_name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MeshOf = Callable[..., Mesh]

X = np.random.default_rng(0).normal(size=(4, 8, 16)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(4, 16, 16)).astype(np.float32)


def dense(x: Any, w: Any) -> jax.Array:
    options: Any = {"in_specs": (P(None, "x"), P("x")), "out_sharding": P(None, "x")}
    return ce.einsum("be,ef->bf", x, w, **options)


def flops(function: Callable[..., Any], *operands: Any) -> float:
    """Of one device."""
    costs: Any = jax.jit(function).lower(*operands).compile().cost_analysis()
    return (costs[0] if isinstance(costs, list) else costs)["flops"]


@pytest.mark.parametrize("weights", [None, 0], ids=["one", "each"])
@pytest.mark.parametrize("axes", ["y", ("y", "z")], ids=str)
def test_the_batch_stays_sharded(mesh_of: MeshOf, axes: Any, weights: int | None) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    n = 2 if axes == "y" else 4
    w = W[0] if weights is None else W

    def both(name: Any) -> Callable[..., Any]:
        run = jax.vmap(dense, (0, weights), spmd_axis_name=name)
        return jax.value_and_grad(lambda x, w: jnp.sin(run(x, w)).sum(), (0, 1))

    def plain(x: Any, w: Any) -> Any:
        return jnp.sin(jnp.einsum("nbe,ef->nbf" if w.ndim == 2 else "nbe,nef->nbf", x, w)).sum()

    with jax.set_mesh(mesh):
        at = [P(axes, None, "x"), P("x") if weights is None else P(axes, "x")]
        operands = [
            jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((X, w), at, strict=True)
        ]
        y = jax.jit(jax.vmap(dense, (0, weights), spmd_axis_name=axes))(*operands)
        np.testing.assert_allclose(y, X @ w, rtol=1e-4, atol=1e-4)
        assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(axes, None, "x")), 3)
        assert flops(both(axes), *operands) < 1.5 * flops(both(None), *operands) / n
        value, grads = jax.jit(both(axes))(*operands)
    want, wanted = jax.value_and_grad(plain, (0, 1))(X, w)
    np.testing.assert_allclose(value, want, rtol=1e-4)
    for got, each in zip(grads, wanted, strict=True):
        np.testing.assert_allclose(got, each, rtol=1e-4, atol=1e-4)


def test_around_a_shard_map(mesh_of: MeshOf) -> None:
    """Which divides the batch itself, over an axis that is manual inside."""
    with jax.set_mesh(mesh_of((2, 2), "xy")):

        def layer(x: Any, w: Any) -> jax.Array:
            h = ce.all_gather_einsum("be,ef->bf", x, w, axis_name="x", gather="e")
            return ce.einsum("be,ef->bf", h, jnp.eye(8))

        inner = jax.shard_map(layer, in_specs=(P(None, "x"), P(None, "x")), out_specs=P(None, "x"))
        got = jax.jit(jax.vmap(inner, (0, None), spmd_axis_name="y"))(X, W[0])
        np.testing.assert_allclose(got, X @ W[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("axes", "batch", "words"),
    [
        ("x", 4, "axis 'x' shards a dimension already"),
        ("q", 4, "the mesh has no axis 'q'"),
        ("y", 3, "2 devices do not divide the batch; pad it to 4"),
    ],
)
def test_what_cannot_be(mesh_of: MeshOf, axes: str, batch: int, words: str) -> None:
    with jax.set_mesh(mesh_of((2, 2), "xy")), pytest.raises(ValueError, match=words):
        jax.jit(jax.vmap(dense, (0, None), spmd_axis_name=axes))(X[:batch], W[0])
