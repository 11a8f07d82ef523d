"""einsum as models call jnp.einsum: few arguments or many operands, and what jnp alone can do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from .exact import SPECS, MeshOf, V, W, X, equal, on, whole


def test_traced_on_auto_axes_without_specs(mesh_of: MeshOf) -> None:
    """Where nothing is said and nothing can be seen, it is jnp.einsum."""

    def einsum(x: Any, w: Any) -> jax.Array:
        return ce.einsum("ij,jk->ik", x, w)

    mesh = mesh_of((4, 2), "xy")
    with jax.set_mesh(mesh):
        x, w = on(mesh, X, SPECS[0]), on(mesh, W, SPECS[1])
        equal(jax.jit(einsum)(x, w), X @ W)
        grad = jax.grad(lambda x, w: einsum(x, w).sum(), (0, 1))
        equal(grad(x, w), jax.grad(lambda x, w: (x @ w).sum(), (0, 1))(X, W))
        equal(jax.vmap(einsum, (0, None))(jnp.stack([x, x]), w), np.stack([X @ W] * 2))
        named: Any
        for named in ({"schedule": "latency"}, {"out_sharding": P()}, {"wire_dtype": jnp.bfloat16}):
            with pytest.raises(ValueError, match=r"Auto.*pass in_specs="):
                jax.jit(lambda x, w, named=named: ce.einsum("ij,jk->ik", x, w, **named))(x, w)
    equal(jax.jit(einsum)(X, W), X @ W)
    equal(einsum(X, W), X @ W)


def test_inside_auto_axes(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy", explicit=True)
    with jax.set_mesh(mesh):
        x, w = on(mesh, X, SPECS[0]), on(mesh, W, SPECS[1])
        for options in ({}, {"in_specs": SPECS[:2], "out_sharding": P("x")}):

            @jax.sharding.auto_axes(out_sharding=P("x"))
            def inner(x: Any, w: Any, options: Any = options) -> jax.Array:
                return ce.einsum("ij,jk->ik", x, w, **options)

            equal(inner(x, w), X @ W)
            equal(jax.jit(inner)(x, w), X @ W)


@pytest.mark.parametrize("context", [True, False])
def test_arrays_say_where_they_lie(mesh_of: MeshOf, context: bool) -> None:
    mesh = mesh_of((4, 2), "xy")
    x, w = on(mesh, X, SPECS[0]), on(mesh, W, SPECS[1])
    empty = jax.sharding.AbstractMesh((), ())
    with jax.set_mesh(mesh) if context else jax.sharding.use_abstract_mesh(empty):
        # Named, which needs shardings to be known.
        out = NamedSharding(mesh, P(None, "x"))
        got = ce.einsum("ij,jk->ik", x, w, out_sharding=out, schedule="latency")
        equal(got, X @ W)
        assert got.sharding.is_equivalent_to(out, 2)
        # As jnp.einsum, however they lie; and one may lie on no mesh.
        equal(ce.einsum("ij,jk->ik", x, w), X @ W)
        equal(ce.einsum("ij,jk->ik", x, W), X @ W)
        natural = ce.einsum("ij,jk->ik", on(mesh, X, P("x")), on(mesh, W, P(None, "y")))
        assert natural.sharding.is_equivalent_to(NamedSharding(mesh, P("x", "y")), 2)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_operand_on_another_mesh(mesh_of: MeshOf, wrap: Any) -> None:
    """Of the same devices, as jit takes it."""
    mesh, other = mesh_of((4, 2), "xy"), mesh_of((8,), "q")
    x, w = on(mesh, X, SPECS[0]), on(other, W, P("q"))

    def einsum(x: Any, w: Any) -> jax.Array:
        return ce.einsum("ij,jk->ik", x, w, mesh=mesh, in_specs=SPECS[:2], out_sharding=P("x"))

    equal(wrap(einsum)(x, w), X @ W)
    grad = jax.grad(lambda x, w: einsum(x, w).sum(), (0, 1))
    equal(wrap(grad)(x, w), jax.grad(lambda x, w: (x @ w).sum(), (0, 1))(X, W))
    with jax.set_mesh(mesh):
        equal(wrap(einsum)(x, w), X @ W)
    equal(wrap(lambda x, w: ce.einsum("ij,jk->ik", x, w))(x, w), X @ W)
    explicit = mesh_of((4, 2), "xy", explicit=True)
    with jax.set_mesh(explicit):
        typed = on(explicit, X, SPECS[0])
        with pytest.raises(ValueError, match="use one mesh for all"):
            ce.einsum("ij,jk->ik", typed, on(mesh_of((8,), "q", explicit=True), W, P("q")))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("optimize", ["auto", True, False, [(1, 2), (0, 1)]], ids=str)
def test_three_operands(mesh_of: MeshOf, explicit: bool, optimize: Any) -> None:
    mesh = mesh_of((4, 2), "xy", explicit)
    options: Any = {} if explicit else {"in_specs": SPECS}

    def einsum(*operands: Any) -> jax.Array:
        return ce.einsum(
            "ij,jk,kl->li", *operands, optimize=optimize, out_sharding=P(None, "x"), **options
        )

    with jax.set_mesh(mesh):
        operands = [on(mesh, a, spec) for a, spec in zip((X, W, V), SPECS, strict=True)]
        got = jax.jit(einsum)(*operands)
        equal(got, (X @ W @ V).T)
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "x")), 2)
        grads = jax.jit(jax.grad(lambda *xs: einsum(*xs).sum(), (0, 1, 2)))(*operands)
        equal(grads, jax.grad(lambda x, w, v: (x @ w @ v).sum(), (0, 1, 2))(X, W, V))


def test_many_operands(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy")
    scale, one = whole(8, seed=3), whole(1, 16, seed=4)
    got = ce.einsum(
        "bi,b,ij,...j,jl->bl", X, scale, W, one, V, mesh=mesh,
        in_specs=(P("x"), P("x"), P(None, "y"), P(), P("y")), out_sharding=P("x"),
    )  # fmt: skip
    equal(got, np.einsum("bi,b,ij,j,jl->bl", X, scale, W, one[0], V))
    small = [a.astype(np.int8) for a in (X, W, V)]
    with pytest.raises(
        ValueError, match="integer overflow: 256 products of int8 and int8 and int8"
    ):
        ce.einsum("ij,jk,kl->il", *small)
    got = ce.einsum(
        "ij,jk,kl->il", *small, mesh=mesh, in_specs=SPECS, out_sharding=P(),
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    equal(got, X @ W @ V)
    with pytest.raises(ValueError, match="one for each of 3 operand"):
        ce.einsum("ij,jk,kl->il", X, W, V, mesh=mesh, in_specs=SPECS[:2])
    with pytest.raises(ValueError, match=r"names 3 operand.*there are 1"):
        ce.einsum("ij,jk,kl->il", X)
    with pytest.raises(ValueError, match=r"optimize='fast'.*'greedy'"):
        ce.einsum("ij,jk,kl->il", X, W, V, mesh=mesh, in_specs=SPECS, optimize="fast")


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("spec", "shape", "layout", "out"),
    [
        ("ij->ji", (8, 16), P("x", "y"), P("x", "y")),
        ("ij->j", (8, 16), P("x", "y"), P("x")),
        ("ij->", (8, 16), P("x", "y"), P()),
        ("ii->i", (8, 8), P("x", "y"), P(("x", "y"))),
        ("iji->j", (4, 8, 4), P("x", "y"), P("x")),
        ("...j->...", (4, 8), P("x", "y"), P("x")),
    ],
)
def test_one_operand(
    mesh_of: MeshOf, spec: str, shape: tuple[int, ...], layout: P, out: P, explicit: bool
) -> None:
    mesh = mesh_of((4, 2), "xy", explicit)
    x = whole(*shape)
    options: Any = {} if explicit else {"in_specs": (layout,)}
    with jax.set_mesh(mesh):
        operand = on(mesh, x, layout)
        got = jax.jit(lambda x: ce.einsum(spec, x, out_sharding=out, **options))(operand)
        equal(got, np.einsum(spec, x))
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, out), got.ndim)
        equal(ce.einsum(spec, operand), np.einsum(spec, x))
    with pytest.raises(ValueError, match="64 values of int8 sum to as much as 8192"):
        ce.einsum("ij->", np.ones((8, 8), np.int8))


def test_lists_of_labels(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy")
    options: Any = {"mesh": mesh, "in_specs": SPECS[:2], "out_sharding": P("x")}
    equal(ce.einsum(X, [0, 1], W, [1, 2], [0, 2], **options), X @ W)
    equal(ce.einsum(X, [5, 3], W, [3, 7], **options), X @ W)
    equal(ce.einsum(X, [..., 0], W, [0, 1], [..., 1], **options), X @ W)
    equal(ce.einsum(X, [0, 1], [1, 0]), X.T)
    for operands in ((X, W), (X, [0, 1], W), (X,)):
        with pytest.raises(
            ValueError, match="a string such as 'ij,jk->ik', or operands each followed"
        ):
            ce.einsum(*operands)
    with pytest.raises(ValueError, match="give its operands"):
        ce.einsum("ij,jk->ik")


@pytest.mark.parametrize(
    ("shapes", "out"),
    [(((8, 0), (0, 4)), (8, 4)), (((0, 8), (8, 4)), (0, 4)), (((8, 8), (8, 0)), (8, 0))],
    ids=str,
)
def test_size_zero(mesh_of: MeshOf, shapes: Any, out: tuple[int, int]) -> None:
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    for explicit in (False, True):
        mesh = mesh_of((4, 2), "xy", explicit)
        options: Any = {} if explicit else {"in_specs": SPECS[:2]}
        with jax.set_mesh(mesh):
            operands = on(mesh, x, SPECS[0]), on(mesh, w, SPECS[1])

            def einsum(x: Any, w: Any, options: Any = options) -> jax.Array:
                return ce.einsum("ij,jk->ik", x, w, out_sharding=P("x"), **options)

            got = jax.jit(einsum)(*operands)
            assert (got.shape, got.dtype) == (out, np.float32)
            grads = jax.jit(jax.grad(lambda x, w, f=einsum: f(x, w).sum(), (0, 1)))(*operands)
            assert [g.shape for g in grads] == [x.shape, w.shape]
            # The lowest jax that is supported cannot fetch sharded arrays without elements.
            for each in (got, *grads):
                assert not each.size or not np.asarray(each).any()


def test_partial_sums_are_those_of_jnp(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy", explicit=True)
    with jax.set_mesh(mesh):
        x, w = on(mesh, X, SPECS[0]), on(mesh, W, SPECS[1])
        out = P(None, "y", unreduced=frozenset({"x"}))
        got = ce.einsum("ij,jk->ik", x, w, out_sharding=out)
        assert jax.typeof(got) == jax.typeof(jnp.einsum("ij,jk->ik", x, w, out_sharding=out))
        equal(jax.reshard(got, P()), X @ W)
        kept = on(mesh, W, P(reduced=frozenset({"x"})))
        equal(ce.einsum("ij,jk->ik", on(mesh, X, P("x")), kept), X @ W)
        with pytest.raises(ValueError, match=r"lhs is unreduced.*jax.reshard"):
            ce.einsum("ij,jk->ik", got, W)
        with pytest.raises(ValueError, match="the result is unreduced"):
            ce.einsum("ij,jk->ik", x, w, out_sharding=out, schedule="latency")


def test_explicit_beside_auto_axes() -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(AxisType.Explicit, AxisType.Auto))
    with jax.set_mesh(mesh):
        x = on(mesh, X, P("x"))
        got = jax.jit(lambda x, w: ce.einsum("ij,jk->ik", x, w))(x, W)
        assert jax.typeof(got).sharding.spec == P("x", None)
        equal(got, X @ W)


def test_diagonals_of_size_1_keep_their_axes(mesh_of: MeshOf) -> None:
    mesh = mesh_of((1,), "y", explicit=True)
    with jax.set_mesh(mesh):
        x, w = np.full((1, 1, 1), 3, np.float32), np.full(1, 2, np.float32)
        operands = on(mesh, x, P(None, None, "y")), on(mesh, w, P(None))
        equal(
            ce.einsum("aab,a->ab", *operands, out_sharding=P("y", None)),
            np.array([[6]], np.float32),
        )
