"""dot_general of global arrays, and as a layer of a neural network library calls it."""

from __future__ import annotations

import functools
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


def whole(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


CASES = [
    ((8, 16), (16, 8), (((1,), (0,)), ((), ())), P(None, "x"), P("x", "y"), P("x")),
    ((8, 4, 16), (16, 8), (((2,), (0,)), ((), ())), P("x", None, "y"), P("y"), P("x")),
    ((4, 8, 16), (4, 16, 8), (((2,), (1,)), ((0,), (0,))), P("x"), P("x"), P("x")),
    ((8, 4, 16), (16, 2, 4), (((2,), (0,)), ((1,), (2,))), P("x"), P("y"), P("x", "y")),
    ((8, 4, 16), (16, 4, 2), (((1, 2), (1, 0)), ((), ())), P("x"), P("y", "x"), P("y")),
    ((8,), (4,), (((), ()), ((), ())), P("x"), P("y"), P("x", "y")),
]


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case[2]))
def test_values_and_gradients(mesh_of: MeshOf, case: Any, explicit: bool) -> None:
    left, right, numbers, *specs, out = case
    mesh = mesh_of((4, 2), "xy", explicit)
    x, w = whole(*left), whole(*right, seed=1)
    options: Any = {} if explicit else {"in_specs": specs}

    def ours(x: Any, w: Any) -> jax.Array:
        return ce.dot_general(x, w, numbers, out_sharding=out, **options)

    want, pull = jax.vjp(lambda x, w: jax.lax.dot_general(x, w, numbers), x, w)
    ct = whole(*want.shape, seed=2)
    with jax.set_mesh(mesh):
        operands = [
            jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((x, w), specs, strict=True)
        ]
        got = jax.jit(ours)(*operands)
        np.testing.assert_array_equal(got, want)
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, out), got.ndim)
        ct_there = jax.device_put(ct, NamedSharding(mesh, out))
        grads = jax.jit(lambda x, w, ct: jax.vjp(ours, x, w)[1](ct))(*operands, ct_there)
    for got, wanted in zip(grads, pull(ct), strict=True):
        np.testing.assert_array_equal(got, wanted)


def dense(x: Any, params: Any, dot_general: Callable[..., Any], dtype: Any = None) -> jax.Array:
    """A dense layer as flax has it: contracts the last dimension, by keywords and by position."""
    kernel = params["kernel"]
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    y = dot_general(x, kernel, numbers, precision=None, preferred_element_type=dtype)
    return y + params["bias"]


@pytest.mark.parametrize("dtype", [None, jnp.float32])
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_dense_layers(mesh_of: MeshOf, explicit: bool, dtype: Any) -> None:
    mesh = mesh_of((4, 2), "xy", explicit)
    x, params = whole(2, 8, 16), {"kernel": whole(16, 8, seed=1), "bias": np.ones(8, np.float32)}
    rows = P(None, "x", None)
    hook = functools.partial(ce.dot_general, out_sharding=rows)
    if not explicit:
        hook = functools.partial(hook, in_specs=(rows, P(None, "y")))

    def loss(params: Any, x: Any, dot_general: Any) -> Any:
        return (dense(x, params, dot_general, dtype) ** 2).sum()

    want = jax.grad(loss)(params, x, jax.lax.dot_general)
    with jax.set_mesh(mesh):
        there = jax.device_put(x, NamedSharding(mesh, rows))
        laid = {
            "kernel": jax.device_put(params["kernel"], NamedSharding(mesh, P(None, "y"))),
            "bias": params["bias"],
        }
        got = jax.jit(jax.grad(functools.partial(loss, dot_general=hook)))(laid, there)
        # With nothing said, as lax.dot_general.
        bare = jax.jit(jax.grad(functools.partial(loss, dot_general=ce.dot_general)))
        again = bare(params, x)
    for key, wanted in want.items():
        np.testing.assert_allclose(got[key], wanted, rtol=1e-5)
        np.testing.assert_allclose(again[key], wanted, rtol=1e-5)


def test_quantized_weights(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4,), "x")
    x, w = whole(8, 16), ce.quantize(whole(16, 8, seed=1), 0)
    got = ce.dot_general(
        x, w, (((1,), (0,)), ((), ())), mesh=mesh, in_specs=(P(None, "x"), P("x")),
        out_sharding=P("x"), schedule="latency",
    )  # fmt: skip
    np.testing.assert_allclose(got, x @ np.asarray(w.dequantize(), np.float32), atol=2)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (((1,), (0,)), "give ..lhs_contracting, rhs_contracting"),
        ("ij", "give ..lhs_contracting, rhs_contracting"),
        ((((1,), (1,)), ((), ())), "dimension 1 of lhs is 16 and dimension 1 of rhs is 8"),
        ((((2,), (0,)), ((), ())), "different dimensions of lhs, of 0 to 1"),
        ((((-1,), (0,)), ((), ())), "different dimensions of lhs, of 0 to 1"),
        ((((1,), (0,)), ((1,), (1,))), "different dimensions of lhs"),
        ((((1,), ()), ((), ())), "as many dimensions, pair by pair"),
    ],
)
def test_dimension_numbers_that_do_not_fit(numbers: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ce.dot_general(whole(8, 16), whole(16, 8), numbers)
