"""einsum with a list of rhs: the results of one einsum each, of one all-gather."""

from __future__ import annotations

import re
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
TEXT = "bld,df->blf"
X, W, OUT = P("x", None, "y"), P("x", "y"), P("x", None, "y")
WIDTHS = (8, 16, 8)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, want)


def several(x: Any, weights: Any, schedule: str = "auto") -> Any:
    return ce.einsum(TEXT, x, weights, in_specs=(X, W), out_sharding=OUT, schedule=schedule)


def plain(x: Any, weights: Any) -> Any:
    return [jnp.einsum(TEXT, x, w) for w in weights]


def loss(product: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, ws: sum(jnp.sum(jnp.sin((i + 1) * y)) for i, y in enumerate(product(x, ws)))


@pytest.fixture(params=["auto", "explicit"])
def case(request: pytest.FixtureRequest, mesh_of: MeshOf) -> Any:
    mesh = mesh_of((2, 4), "xy", request.param == "explicit")
    with jax.set_mesh(mesh):
        x = jax.device_put(normal(4, 6, 16), NamedSharding(mesh, X))
        weights = [
            jax.device_put(normal(16, n, seed=i + 1), NamedSharding(mesh, W))
            for i, n in enumerate(WIDTHS)
        ]
        yield x, weights


SCHEDULES = ["auto", "blocking", "latency", "unidirectional", "bidirectional"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_results_and_gradients(case: Any, schedule: str) -> None:
    x, weights = case
    host = np.asarray(x), [np.asarray(w) for w in weights]

    def ours(x: Any, ws: Any) -> Any:
        return several(x, ws, schedule)

    close(jax.jit(ours)(x, weights), plain(*host))
    close(
        jax.jit(jax.value_and_grad(loss(ours), (0, 1)))(x, weights),
        jax.value_and_grad(loss(plain), (0, 1))(*host),
    )


def test_forward_mode_and_second_derivatives(case: Any) -> None:
    x, weights = case
    host = np.asarray(x), [np.asarray(w) for w in weights]

    def derivatives(product: Any) -> Any:
        def second(x: Any, ws: Any) -> Any:
            return jax.jvp(jax.grad(loss(product), (0, 1)), (x, ws), (x, ws))[1]

        return second

    close(jax.jit(derivatives(several))(x, weights), derivatives(plain)(*host))
    # The gradient of one of them alone, and a tangent of one of them.
    one = lambda product: lambda w: loss(product)(x, [weights[0], w, weights[2]])  # noqa: E731
    got = jax.jit(jax.grad(one(several)))(weights[1])
    close(got, jax.grad(lambda w: loss(plain)(host[0], [host[1][0], w, host[1][2]]))(host[1][1]))


def test_vmap_of_some_of_them(case: Any) -> None:
    x, weights = case
    many = jnp.stack([weights[0], 2 * weights[0], 3 * weights[0]])

    def total(x: Any, w: Any, others: Any) -> Any:
        return loss(several)(x, [w, *others])

    mapped = jax.vmap(jax.grad(total, (0, 1)), in_axes=(None, 0, None))
    got = jax.jit(mapped)(x, many, weights[1:])
    host = np.asarray(x), [np.asarray(w) for w in weights]
    for i in range(3):
        factor = (i + 1) * host[1][0]
        want = jax.grad(
            lambda x, w: loss(plain)(x, [w, *host[1][1:]]),
            (0, 1),
        )(host[0], factor)
        close(jax.tree.map(lambda y, i=i: y[i], got), want)


def test_batched_lhs(case: Any) -> None:
    x, weights = case
    got = jax.jit(jax.vmap(several, in_axes=(0, None)))(jnp.stack([x, 2 * x]), weights)
    for y, want in zip(got, plain(np.asarray(x), [np.asarray(w) for w in weights]), strict=True):
        close(y, np.stack([want, 2 * np.asarray(want)]))


def all_gathers(function: Any, *operands: Any) -> int:
    text = jax.jit(function).lower(*operands).as_text()
    return len(re.findall(r"stablehlo\.all_gather\b", text))


def test_one_gather_serves_all_of_them(case: Any) -> None:
    """x over y once, and each of three weights over x; one by one, x three times."""
    x, weights = case
    together = all_gathers(lambda x, ws: several(x, ws, "blocking"), x, weights)
    alone = all_gathers(lambda x, ws: [several(x, [w], "blocking") for w in ws], x, weights)
    assert (together, alone) == (4, 6)


def test_one_scatter_is_the_gradient_of_the_gather(case: Any) -> None:
    x, weights = case
    gradient = jax.grad(loss(lambda x, ws: several(x, ws, "blocking")))
    text = jax.jit(gradient).lower(x, weights).as_text()
    assert len(re.findall(r"stablehlo\.reduce_scatter", text)) == 1


def test_each_may_have_shardings_of_its_own(mesh_of: MeshOf) -> None:
    mesh = mesh_of((2, 4), "xy")
    x, a, b = normal(4, 6, 16), normal(16, 8, seed=1), normal(16, 8, seed=2)
    with jax.set_mesh(mesh):
        got = jax.jit(
            lambda x, a, b: ce.einsum(
                TEXT,
                x,
                (a, b),
                in_specs=(X, [W, P("x", None)]),
                out_sharding=[OUT, P("x", None, None)],
            )
        )(x, a, b)
    close(got, plain(x, [a, b]))
    assert [y.sharding.spec for y in got] == [OUT, P("x")]


def test_int8_among_them(case: Any) -> None:
    x, weights = case
    host = [np.asarray(w) for w in weights]
    narrow = ce.quantize(weights[1], axis=0)
    got = jax.jit(several)(x, [weights[0], narrow, weights[2]])
    want = plain(np.asarray(x), [host[0], np.asarray(narrow.dequantize()), host[2]])
    close(got, want)


def test_without_a_mesh_and_with_an_empty_dimension() -> None:
    x, a, b = normal(2, 3, 4), normal(4, 5), normal(4, 0)
    close(ce.einsum(TEXT, x, [a, b]), plain(x, [a, b]))


def test_arrays_and_numbers() -> None:
    """A list of arrays is several operands, also of rank 0; a list of numbers is one."""
    x = normal(3)
    close(ce.einsum("a,->a", x, [jnp.float32(2), jnp.float32(3)]), [2 * x, 3 * x])
    close(ce.einsum("a,a->", x, [1.0, 2.0, 3.0]), x @ np.array([1, 2, 3]))
    close(ce.einsum("a,a->", x, [np.float32(n) for n in (1, 2, 3)]), x @ np.array([1, 2, 3]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x, w: ce.einsum("bld,df,fe->ble", x, [w, w], w), "3 operands"),
        (lambda x, w: ce.einsum("bld,df->blf", [x, x], w), "several rhs, behind one lhs"),
        (lambda x, w: ce.einsum(TEXT, x, [w, w], in_specs=(X, [W])), "1 entries for 2 rhs"),
        (lambda x, w: ce.einsum(TEXT, x, [w, w], in_specs=(X, W, W)), "in_specs must be a pair"),
        (lambda x, w: ce.einsum(TEXT, x, [w, w], out_sharding=[OUT] * 3), "3 entries for 2 rhs"),
    ],
)
def test_mistakes(case: Any, call: Any, words: str) -> None:
    x, weights = case
    with pytest.raises(ValueError, match=re.escape(words)):
        call(x, weights[0])


def test_what_overlaps_no_einsum_is_lax_s(case: Any) -> None:
    """Of x over y and of weights over x one overlaps the einsum; the other is waited for at once."""
    x, weights = case

    def program(x: Any, w: Any) -> Any:
        return ce.einsum(TEXT, x, w, in_specs=(X, W), out_sharding=OUT, chip="v4")

    text = jax.jit(program).lower(x, weights[0]).as_text()
    assert "stablehlo.all_gather" in text
    named = jax.jit(lambda x, w: several(x, [w], "latency")).lower(x, weights[0]).as_text()
    assert "stablehlo.all_gather" not in named
