"""Derivatives and values outside jit, and where jax compiles nothing (`jax_disable_jit`)."""

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

pytestmark = pytest.mark.slow

MeshOf = Callable[..., Mesh]

LHS, RHS, OUT = P(None, ("x", "y")), P("x", "y"), P(None, ("y", "x"))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, W = normal(8, 16), normal(16, 16, seed=1)


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=3e-4, atol=3e-4), got, want)


def loss(einsum: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, w: jnp.sin(einsum(x, w)).sum()


def scanned(einsum: Callable[..., Any]) -> Callable[..., Any]:
    """Three layers whose weights are scaled."""

    def run(x: Any, w: Any) -> Any:
        return jax.lax.scan(lambda x, c: (einsum(x, w * c), None), x, jnp.arange(0.1, 0.4, 0.1))[0]

    return run


TRANSFORMED: dict[str, Callable[[Callable[..., Any], Any, Any], Any]] = {
    "grad": lambda f, x, w: jax.grad(loss(f), (0, 1))(x, w),
    "vjp": lambda f, x, w: jax.vjp(f, x, w)[1](f(x, w)),
    "jvp": lambda f, x, w: jax.jvp(f, (x, w), (x, w)),
    "linearize": lambda f, x, w: jax.linearize(f, x, w)[1](x, w),
    "jacrev": lambda f, x, w: jax.jacrev(lambda x: f(x, w).sum(0))(x),
    "jacfwd": lambda f, x, w: jax.jacfwd(lambda x: f(x, w).sum(0))(x),
    "hessian": lambda f, x, w: jax.hessian(lambda x: loss(f)(x, w))(x),
    "checkpoint": lambda f, x, w: jax.grad(jax.checkpoint(loss(f)), (0, 1))(x, w),
    "scan": lambda f, x, w: jax.grad(loss(scanned(f)), (0, 1))(x, w),
    "vmap": lambda f, x, w: jax.vmap(f, (0, None))(jnp.stack([x, 2 * x]), w),
}


@pytest.mark.parametrize("disable_jit", [False, True], ids=["", "disable_jit"])
@pytest.mark.parametrize("kind", ["auto", "explicit", "no context"])
def test_global_arrays(mesh_of: MeshOf, kind: str, disable_jit: bool) -> None:
    mesh = mesh_of((2, 2), "xy", kind == "explicit")
    options: Any = {"out_sharding": OUT}
    if kind != "explicit":
        options |= {"in_specs": (LHS, RHS)}
    if kind == "no context":
        options |= {"mesh": mesh}

    def einsum(x: Any, w: Any) -> jax.Array:
        return ce.einsum("be,ef->bf", x, w, **options)

    def layer(x: Any, w: Any) -> jax.Array:
        # A carry keeps its type.
        return jax.reshard(einsum(x, w), LHS) if kind == "explicit" else einsum(x, w)

    x, w = (jax.device_put(v, NamedSharding(mesh, spec)) for v, spec in ((X, LHS), (W, RHS)))

    def check() -> None:
        close(einsum(x, w), X @ W)
        few = ("grad", "linearize", "scan", "vmap")
        chosen = few if disable_jit or kind == "no context" else TRANSFORMED
        for name in chosen:
            transformed = TRANSFORMED[name]
            ours = layer if name == "scan" else einsum
            # A scan with jit disabled is a loop in Python.
            close(transformed(ours, x, w), transformed(jnp.matmul, jnp.asarray(X), jnp.asarray(W)))

    if kind == "no context":
        with jax.disable_jit(disable_jit):
            check()
    else:
        with jax.set_mesh(mesh), jax.disable_jit(disable_jit):
            check()


COLUMNS, ROWS = P(None, "x"), P("x")
# x @ w of shards that lie in different places, by every function.
SHARDED: dict[str, tuple[Callable[..., Any], tuple[P, P, P]]] = {
    "all_gather_einsum": (
        lambda x, w: ce.all_gather_einsum(
            "be,ef->bf", x, w, axis_name="x", gather="e", schedule="latency"
        ),
        (COLUMNS, COLUMNS, COLUMNS),
    ),
    "einsum_reduce_scatter": (
        lambda x, w: ce.einsum_reduce_scatter(
            "be,ef->bf", x, w, axis_name="x", scatter="f", schedule=ce.Schedule("chunked", chunks=2)
        ),
        (COLUMNS, ROWS, COLUMNS),
    ),
    "einsum_all_reduce": (
        lambda x, w: ce.einsum_all_reduce("be,ef->bf", x, w, axis_name="x"),
        (COLUMNS, ROWS, P()),
    ),
    "all_gather": (lambda x, w: ce.all_gather(x, "x", axis=1) @ w, (COLUMNS, COLUMNS, COLUMNS)),
    "reduce_scatter": (
        lambda x, w: ce.reduce_scatter(x @ w, "x", scatter_dimension=1),
        (COLUMNS, ROWS, COLUMNS),
    ),
    "all_to_all": (lambda x, w: ce.all_to_all(x, "x", 0, 1) @ w, (COLUMNS, P(), ROWS)),
    "all_reduce": (
        lambda x, w: ce.all_reduce(x @ w, "x", schedule="latency"),
        (COLUMNS, ROWS, P()),
    ),
}


@pytest.mark.parametrize("name", SHARDED)
def test_shards(mesh_of: MeshOf, name: str) -> None:
    """jax runs a shard_map outside jit piece by piece, and so its derivatives."""
    mesh = mesh_of((2,), "x")
    body, (x, w, out) = SHARDED[name]
    function = jax.shard_map(body, mesh=mesh, in_specs=(x, w), out_specs=out)
    want = jax.grad(loss(jnp.matmul), (0, 1))(X, W)
    with jax.set_mesh(mesh):
        close(jax.grad(loss(function), (0, 1))(X, W), want)
        with jax.disable_jit():
            close(function(X, W), X @ W)
            if name.startswith(("all_gather", "einsum")):
                close(jax.grad(loss(function), (0, 1))(X, W), want)
