"""Programs with einsums of this library in place of lax's collectives, against the original programs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxpr_as_fun
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.advise import program as programs
from collective_einsum.advise.candidates import Candidates, candidates, place
from collective_einsum.advise.global_dots import global_dots
from collective_einsum.advise.program import lines_of
from collective_einsum.advise.substitute import substituted

Y = "y"


def wide(x: jax.Array) -> Any:
    """The dtype of sums of products."""
    return jnp.int32 if x.dtype == jnp.int8 else x.dtype


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.dot(x, w, preferred_element_type=wide(x))


def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("x", Y), axis_types=(AxisType.Auto,) * 2)


def matmul_after_gather(x: jax.Array, w: jax.Array) -> jax.Array:
    return dot(lax.all_gather(x, Y, axis=1, tiled=True), w)


def rows_gathered_for_two_dots(x: jax.Array, w: jax.Array) -> jax.Array:
    everything = lax.all_gather(x, Y, axis=0, tiled=True)
    one = jnp.einsum("md,df->mf", everything, w, preferred_element_type=wide(x))
    other = jnp.einsum("md,df->mf", everything, jnp.flip(w), preferred_element_type=wide(x))
    return one * jnp.sign(other)


def weights_gathered(x: jax.Array, w: jax.Array) -> jax.Array:
    return dot(x.astype(jnp.float32), lax.all_gather(w, Y, axis=0, tiled=True).astype(jnp.float32))


def gathered_untiled_and_reshaped(x: jax.Array, w: jax.Array) -> jax.Array:
    stacked = lax.all_gather(x, Y, axis=0)
    return dot(stacked.reshape(-1, x.shape[1]), w)


def gathered_and_transposed(x: jax.Array, w: jax.Array) -> jax.Array:
    heads = lax.all_gather(x, Y, axis=1, tiled=True).T.reshape(8, -1, x.shape[0])
    return jnp.einsum(
        "hdm,hdf->mf", heads, w.reshape(8, -1, w.shape[1]), preferred_element_type=wide(x)
    )


def batched(x: jax.Array, w: jax.Array) -> jax.Array:
    both = lax.all_gather(jnp.stack([x, -x]), Y, axis=2, tiled=True)
    weights = jnp.stack([w, jnp.flip(w)])
    out = jnp.einsum("bmd,bdf->bmf", both, weights, preferred_element_type=wide(x))
    return out.reshape(-1, w.shape[1])


def columns_scattered(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.psum_scatter(dot(x, w), Y, scatter_dimension=1, tiled=True)


def rows_scattered_after_a_transpose(x: jax.Array, w: jax.Array) -> jax.Array:
    out = jnp.einsum("md,df->fm", x, w, preferred_element_type=wide(x)).T.reshape(4, -1, w.shape[1])
    return lax.psum_scatter(out, Y, scatter_dimension=0, tiled=True).reshape(-1, w.shape[1])


def scattered_untiled(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.psum_scatter(dot(x, w).reshape(x.shape[0], 4, -1), Y, scatter_dimension=1)


def summed(x: jax.Array, w: jax.Array) -> jax.Array:
    floats = jnp.int32 if x.dtype == jnp.int8 else jnp.float32
    return lax.psum(jnp.dot(x, w, preferred_element_type=floats), Y)


def in_a_loop(x: jax.Array, w: jax.Array) -> jax.Array:
    @jax.checkpoint
    def layer(y: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        hidden = dot(lax.all_gather(y, Y, axis=1, tiled=True), w)
        hidden = hidden * scale.astype(hidden.dtype)
        out = lax.psum_scatter(dot(hidden.astype(y.dtype), w.T), Y, scatter_dimension=1, tiled=True)
        return out.astype(y.dtype), None

    return lax.scan(layer, x, jnp.arange(1, 3).astype(x.dtype))[0]


# Of each: the function, the specs of its operands and of its result, and how many calls it becomes.
D, F = P(None, Y), P(Y, None)
CASES: dict[Callable[..., Any], tuple[P, P, P, int]] = {
    matmul_after_gather: (D, P(), F, 1),
    rows_gathered_for_two_dots: (F, P(), F, 1),
    weights_gathered: (P(), F, F, 1),
    gathered_untiled_and_reshaped: (F, P(), F, 1),
    gathered_and_transposed: (D, P(), F, 1),
    batched: (D, P(), F, 1),
    columns_scattered: (D, F, D, 1),
    rows_scattered_after_a_transpose: (D, F, F, 1),
    scattered_untiled: (D, F, D, 1),
    summed: (D, F, P(), 1),
    in_a_loop: (D, P(None, Y), D, 2),
}


def operands(dtype: Any, seed: int) -> tuple[jax.Array, jax.Array]:
    draws = np.random.default_rng(seed)
    shapes = ((16, 32), (32, 64))
    if dtype == jnp.int8:
        return tuple(jnp.asarray(draws.integers(-3, 4, shape), dtype) for shape in shapes)  # pyright: ignore[reportReturnType]
    return tuple(jnp.asarray(draws.normal(size=shape), dtype) for shape in shapes)  # pyright: ignore[reportReturnType]


def changed(
    function: Callable[..., Any], *args: Any
) -> tuple[programs.TracedProgram, Any, Candidates]:
    """The program, it with all its candidates substituted, and these."""
    program = programs.trace(function, args)
    known = candidates(program, (), ce.TPU_V4)
    every = {id(c): c for c in known.by_place.values()}.values()
    replacements = [r for candidate in every for r in candidate.replacements]
    return program, substituted(program.jaxpr, replacements, ce.TPU_V4), known


@pytest.mark.parametrize(
    ("dtype", "check_vma"),
    [(jnp.float32, True), (jnp.bfloat16, False), (jnp.int8, True)],
)
@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_it_is_the_same_function(function: Callable[..., Any], dtype: Any, check_vma: bool) -> None:
    lhs, rhs, out, calls = CASES[function]
    mapped = jax.jit(
        jax.shard_map(
            function, mesh=mesh(), in_specs=(lhs, rhs), out_specs=out, check_vma=check_vma
        )
    )
    args = operands(dtype, seed=len(function.__name__))
    program, other, _ = changed(mapped, *args)
    text = str(other)
    assert text.count("collective_einsum[") == calls
    assert "reduce_scatter[" not in text
    assert "all_gather[" not in text
    (got,) = jax.jit(jaxpr_as_fun(other))(*program.args)
    wanted = mapped(*args)
    assert got.dtype == wanted.dtype
    tolerance = {jnp.float32: 1e-5, jnp.bfloat16: 4e-2, jnp.int8: 0.0}[dtype]
    scale = float(jnp.abs(wanted.astype(jnp.float32)).max())
    np.testing.assert_allclose(
        np.asarray(got, np.float32), np.asarray(wanted, np.float32), rtol=0, atol=tolerance * scale
    )


def contracted_after_gelu(x: jax.Array, w: jax.Array) -> jax.Array:
    hidden = lax.with_sharding_constraint(jnp.tanh(dot(x, w)), P("x", Y))
    return lax.with_sharding_constraint(dot(hidden, w.T), P("x", Y))


def batched_in_a_loop(x: jax.Array, w: jax.Array) -> jax.Array:
    def layer(y: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        hidden = lax.with_sharding_constraint(jnp.einsum("bd,df->bf", y, w * scale), P("x", Y))
        return lax.with_sharding_constraint(hidden @ w.T, P("x")), None

    return lax.scan(layer, x, jnp.arange(1, 3).astype(x.dtype))[0]


def of_rows_and_columns(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.einsum("bd,df->bf", x, w)


@pytest.mark.parametrize(
    ("function", "explicit"),
    [(contracted_after_gelu, False), (batched_in_a_loop, False), (of_rows_and_columns, True)],
)
def test_dots_of_global_arrays(function: Callable[..., Any], explicit: bool) -> None:
    kind = AxisType.Explicit if explicit else AxisType.Auto
    where = jax.make_mesh((2, 4), ("x", Y), axis_types=(kind,) * 2)
    specs = (P("x", None), P(None, Y)) if explicit else (P("x", Y), P(None, Y))
    args = [
        jax.device_put(array, jax.sharding.NamedSharding(where, spec))
        for array, spec in zip(operands(jnp.float32, seed=1), specs, strict=True)
    ]
    with jax.set_mesh(where):
        program = programs.trace(jax.jit(function), tuple(args))
        places = {place(line) for dot in global_dots(program.jaxpr.jaxpr) for line in lines_of(dot)}
        known = candidates(program, places, ce.TPU_V4)
        every = {id(c): c for c in known.by_place.values()}.values()
        replacements = [r for candidate in every for r in candidate.replacements]
        assert not known.reasons
        other = substituted(program.jaxpr, replacements, ce.TPU_V4)
        assert str(other).count("collective_einsum[") == (1 if explicit else 2)
        assert "dot_general[" not in str(other)
        (got,) = jax.jit(jaxpr_as_fun(other))(*args)
        wanted = jax.jit(function)(*args)
    scale = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * scale)
    assert all("ce.einsum(" in call for candidate in every for call in candidate.calls)


def gelu_between(x: jax.Array, w: jax.Array) -> jax.Array:
    return jax.nn.relu(lax.all_gather(x, Y, axis=1, tiled=True)) @ w


def scaled_before_the_sum(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.psum_scatter((x @ w) * 2, Y, scatter_dimension=1, tiled=True)


def read_twice(x: jax.Array, w: jax.Array) -> jax.Array:
    out = x @ w
    return lax.psum_scatter(out, Y, scatter_dimension=1, tiled=True) + out[:, :16]


def shards_apart(x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.all_gather(x, Y, axis=1, tiled=True).reshape(64, 8) @ w[:8]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (gelu_between, "reads it before a dot does"),
        (scaled_before_the_sum, "mul stands between it and a dot"),
        (read_twice, "something else reads what it sums"),
        (shards_apart, "a reshape takes its shards apart"),
    ],
)
def test_it_says_why_there_is_no_einsum(function: Callable[..., Any], reason: str) -> None:
    sharded = (D, P()) if function in (gelu_between, shards_apart) else (D, F)
    mapped = jax.shard_map(function, mesh=mesh(), in_specs=sharded, out_specs=P(Y, None))
    program, other, known = changed(mapped, *operands(jnp.float32, seed=0))
    assert str(other) == str(program.jaxpr)
    ((line, text),) = known.reasons.items()
    assert line[0] == __file__
    assert reason in text


def test_static_and_donated_arguments_and_shardings_are_kept() -> None:
    where = jax.sharding.NamedSharding(mesh(), P("x"))

    @functools.partial(jax.jit, static_argnums=1, donate_argnums=(2,), out_shardings=(where, None))
    def step(x: jax.Array, times: int, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return x * times, y + 1

    x, y = (jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=where) for _ in range(2))
    program = programs.trace(step, (x, 3, y))
    assert program.donated == (1,)
    assert program.out_shardings == (where, None)
    lowered = program.lowered(program.jaxpr)
    wanted = step.lower(x, 3, y).compile()
    assert lowered.compile().output_shardings == wanted.output_shardings
    stats: list[Any] = [one.memory_analysis() for one in (lowered.compile(), wanted)]
    assert stats[0].alias_size_in_bytes == stats[1].alias_size_in_bytes > 0
