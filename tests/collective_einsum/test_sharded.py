"""einsum of global arrays under every transformation, dtype and kind of mesh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MeshOf = Callable[..., Mesh]

# Gathers x into e, scatters e onto f: one collective at each end.
LHS, RHS, OUT = P(None, ("x", "y")), P("x", "y"), P(None, ("y", "x"))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def on(mesh: Mesh, x: Any, spec: P) -> jax.Array:
    return jax.device_put(x, NamedSharding(mesh, spec))


def dense(x: Any, w: Any) -> jax.Array:
    return ce.einsum("be,ef->bf", x, w, in_specs=(LHS, RHS), out_sharding=OUT)


def typed(x: Any, w: Any) -> jax.Array:
    return ce.einsum("be,ef->bf", x, w, out_sharding=OUT)


def close(got: Any, want: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), got, want)


def loss(einsum: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, w: jnp.sin(einsum(x, w)).sum()


@pytest.fixture(params=["auto", "explicit"])
def case(request: pytest.FixtureRequest, mesh_of: MeshOf) -> Any:
    """The einsum on a mesh of 4x2 entered with set_mesh, and operands laid out for it."""
    explicit = request.param == "explicit"
    mesh = mesh_of((4, 2), "xy", explicit)
    with jax.set_mesh(mesh):
        operands = on(mesh, normal(8, 16), LHS), on(mesh, normal(16, 16, seed=1), RHS)
        yield (typed if explicit else dense), *operands


def test_eager_and_jit_agree(case: Any) -> None:
    einsum, x, w = case
    got = einsum(x, w)
    close(got, np.asarray(x) @ np.asarray(w))
    np.testing.assert_array_equal(np.asarray(got), np.asarray(jax.jit(einsum)(x, w)))


def test_grad_jvp_and_hessian(case: Any) -> None:
    einsum, x, w = case
    plain = np.asarray(x), np.asarray(w)
    both, other = loss(einsum), loss(jnp.matmul)
    close(jax.jit(jax.grad(both, (0, 1)))(x, w), jax.grad(other, (0, 1))(*plain))
    got = jax.jit(lambda x, w: jax.jvp(both, (x, w), (x, w)))(x, w)
    close(got, jax.jvp(other, plain, plain))
    hvp = jax.jit(lambda x, w: jax.jvp(jax.grad(both), (x, w), (x, w))[1])(x, w)
    close(hvp, jax.jvp(jax.grad(other), plain, plain)[1])


def test_scan_of_remat(case: Any) -> None:
    einsum, x, w = case

    def stack(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Any, w: Any) -> Any:
            def body(carry: Any, scale: Any) -> Any:
                return step(carry, w * scale), None

            return jnp.sin(
                jax.lax.scan(jax.checkpoint(body), x, jnp.arange(0.1, 0.4, 0.1))[0]
            ).sum()

        return run

    if einsum is typed:
        # A carry keeps its type.
        def einsum(x: Any, w: Any) -> jax.Array:
            return ce.einsum("be,ef->bf", x, w, out_sharding=LHS)

    plain = np.asarray(x), np.asarray(w)
    got = jax.jit(jax.value_and_grad(stack(einsum), (0, 1)))(x, w)
    close(got, jax.value_and_grad(stack(jnp.matmul), (0, 1))(*plain))


def test_vmap(case: Any) -> None:
    einsum, x, w = case
    many = jnp.stack([x, 2 * x, 3 * x], axis=1)
    batched = jax.vmap(einsum, in_axes=(1, None), out_axes=1)
    want = np.einsum("bne,ef->bnf", np.asarray(many), np.asarray(w))
    close(jax.jit(batched)(many, w), want)
    both = jax.vmap(einsum, in_axes=(1, 0))
    weights = jnp.stack([w, w, 2 * w])
    close(jax.jit(both)(many, weights), np.einsum("bne,nef->nbf", many, weights))

    def total(w: Any) -> Any:
        return jnp.sin(batched(many, w)).sum()

    def plain(w: Any) -> Any:
        return jnp.sin(jnp.einsum("bne,ef->bnf", np.asarray(many), w)).sum()

    close(jax.jit(jax.grad(total))(w), jax.grad(plain)(np.asarray(w)))


def test_vmap_over_a_sharded_dimension(mesh_of: MeshOf) -> None:
    mesh = mesh_of((2, 2, 2), "xyz", explicit=True)
    with jax.set_mesh(mesh):
        x, w = on(mesh, normal(4, 8, 16), P("z", *LHS)), on(mesh, normal(16, 16, seed=1), RHS)
        got = jax.jit(jax.vmap(typed, in_axes=(0, None)))(x, w)
        assert jax.typeof(got).sharding.spec == P("z", *OUT)
        close(got, np.asarray(x) @ np.asarray(w))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("specs", [(LHS, RHS, OUT), (P(None, "x"), P("y"), P())], ids=str)
@pytest.mark.parametrize("manual", ["rows", "columns"])
def test_partly_manual(
    mesh_of: MeshOf, manual: str, specs: tuple[P, P, P], explicit: bool, check_vma: bool
) -> None:
    """Inside a shard_map over z, with x and y left to the einsum."""
    mesh = mesh_of((2, 2, 2), "xyz", explicit)
    x, w = normal(8, 16), normal(16, 16, seed=1)
    rows = manual == "rows"
    outer = (P("z"), P(), P("z")) if rows else (P(), P(None, "z"), P(None, "z"))

    def inner(x: Any, w: Any) -> jax.Array:
        if explicit:
            x, w = (jax.reshard(v, spec) for v, spec in zip((x, w), specs[:2], strict=True))
            return jax.reshard(ce.einsum("be,ef->bf", x, w, out_sharding=specs[2]), P())
        return ce.einsum("be,ef->bf", x, w, in_specs=specs[:2], out_sharding=specs[2])

    einsum = jax.shard_map(
        inner, mesh=mesh, in_specs=outer[:2], out_specs=outer[2], axis_names={"z"},
        check_vma=check_vma,
    )  # fmt: skip
    operands = on(mesh, x, outer[0]), on(mesh, w, outer[1])
    close(jax.jit(einsum)(*operands), x @ w)
    close(
        jax.jit(jax.grad(loss(einsum), (0, 1)))(*operands), jax.grad(loss(jnp.matmul), (0, 1))(x, w)
    )


def test_fully_manual_is_a_local_einsum(mesh_of: MeshOf) -> None:
    mesh = mesh_of((8,), "x")
    x, w = normal(8, 16), normal(16, 4, seed=1)
    local = jax.shard_map(
        lambda x, w: ce.einsum("be,ef->bf", x, w), mesh=mesh, in_specs=(P("x"), P()),
        out_specs=P("x"),
    )  # fmt: skip
    close(jax.jit(local)(x, w), x @ w)


@pytest.mark.parametrize("context", [True, False])
def test_mesh_of_explicit_and_auto_axes(context: bool) -> None:
    kinds = (AxisType.Explicit, AxisType.Auto)
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=kinds)
    x, w = on(mesh, normal(8, 16), LHS), on(mesh, normal(16, 16, seed=1), RHS)

    def einsum(x: Any, w: Any) -> jax.Array:
        out = NamedSharding(mesh, OUT)
        return ce.einsum("be,ef->bf", x, w, in_specs=(LHS, RHS), out_sharding=out)

    if context:
        with jax.set_mesh(mesh):
            got = jax.jit(einsum)(x, w)
    else:
        got = jax.jit(einsum)(x, w)
    close(got, np.asarray(x) @ np.asarray(w))
    # What jit makes of Auto axes in an output that it returns is its own affair.
    assert jax.typeof(got).sharding.spec == P(None, "x")


def test_mesh_without_a_context(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy")
    x, w = normal(8, 16), normal(16, 16, seed=1)
    options: Any = {"mesh": mesh, "in_specs": (LHS, RHS), "out_sharding": OUT}
    for wrap in (lambda f: f, jax.jit):
        got = wrap(lambda x, w: ce.einsum("be,ef->bf", x, w, **options))(x, w)
        close(got, x @ w)
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, OUT), 2)


@pytest.mark.parametrize(
    ("spec", "lhs", "rhs"),
    [
        ("ij,jk->ik", P("x", None), P(None, "y")),
        ("ij,jk->ki", P("x", "y"), P()),
        ("bij,bjk->bik", P("x"), P("x", None, "y")),
        ("bij,bjk->ikb", P("x", "y"), P("x")),
        ("ij,kl->jl", P("x", "y"), P()),
        ("...ij,jk->...ik", P(("x", "y")), P()),
    ],
)
def test_result_is_laid_out_as_jnp_einsum_does(mesh_of: MeshOf, spec: str, lhs: P, rhs: P) -> None:
    mesh = mesh_of((4, 2), "xy", explicit=True)
    shapes = [(8,) * len(labels.replace("...", "p")) for labels in spec.split("->")[0].split(",")]
    with jax.set_mesh(mesh):
        x, w = on(mesh, normal(*shapes[0]), lhs), on(mesh, normal(*shapes[1], seed=1), rhs)
        want = jnp.einsum(spec, x, w)
        got = jax.jit(lambda x, w: ce.einsum(spec, x, w))(x, w)
    assert jax.typeof(got) == jax.typeof(want)
    close(got, want)


PRECISE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    "specs",
    [
        (P(None, ("x", "y")), P("x", "y"), P(None, ("y", "x"))),
        (P(None, ("y", "x")), P(("y", "x"), None), P("x", "y")),
        (P(("x", "y"), None), P(("x", "y"), None), P(("x", "y"), None)),
        (P("x", None), P(None, ("x", "y")), P("x", None)),
        (P(), P(("x", "y"), None), P(None, "y")),
    ],
    ids=str,
)
def test_quantized(mesh_of: MeshOf, specs: tuple[P, P, P], explicit: bool) -> None:
    """Weights whose every column has its own scale; 8 columns, one on each device at most."""
    mesh = mesh_of((4, 2), "xy", explicit)
    x, w = normal(8, 16), ce.quantize(normal(16, 8, seed=1) * np.arange(1, 9, dtype=np.float32), 0)
    want = np.asarray(x) @ np.asarray(w.dequantize())
    by_part = w.partition_specs(specs[1])
    laid = ce.Quantized(
        on(mesh, w.values, by_part.values), on(mesh, w.scale, by_part.scale), w.dtype
    )
    options: Any = {} if explicit else {"in_specs": specs[:2]}
    with jax.set_mesh(mesh):

        def einsum(x: Any, w: Any) -> jax.Array:
            return ce.einsum("be,ef->bf", x, w, out_sharding=specs[2], **options)

        operand = on(mesh, x, specs[0])
        got = jax.jit(einsum)(operand, laid)
        np.testing.assert_allclose(np.asarray(got) / 40, want / 40, **PRECISE)
        assert got.sharding.is_equivalent_to(NamedSharding(mesh, specs[2]), 2)
        grad = jax.jit(jax.grad(lambda x: jnp.sin(einsum(x, laid)).sum()))(operand)
        close(grad, jax.grad(lambda x: jnp.sin(x @ w.dequantize()).sum())(x))


def test_dtypes(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy", explicit=True)
    x, w = normal(8, 16), normal(16, 16, seed=1)
    with jax.set_mesh(mesh):
        a, b = (on(mesh, v, s).astype(jnp.bfloat16) for v, s in ((x, LHS), (w, RHS)))
        assert typed(a, b).dtype == jnp.bfloat16
        wide = ce.einsum("be,ef->bf", a, b, out_sharding=OUT, preferred_element_type=jnp.float32)
        np.testing.assert_allclose(
            wide, np.asarray(a, np.float32) @ np.asarray(b, np.float32), **PRECISE
        )
        grads = jax.jit(jax.grad(loss(typed), (0, 1)))(a, b)
        assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
        whole = [jnp.round(v * 9).astype(jnp.int32) for v in (on(mesh, x, LHS), on(mesh, w, RHS))]
        got = typed(*whole)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, np.asarray(whole[0]) @ np.asarray(whole[1]))


def test_residuals_are_the_operands(mesh_of: MeshOf) -> None:
    mesh = mesh_of((8,), "x", explicit=True)
    with jax.set_mesh(mesh):
        x, w = on(mesh, normal(8, 16), P(None, "x")), on(mesh, normal(16, 32), P(None, "x"))
        _, pullback = jax.vjp(
            lambda x, w: ce.einsum("be,ef->bf", x, w, out_sharding=P(None, "x")), x, w
        )
        kept = {jax.typeof(leaf) for leaf in jax.tree.leaves(pullback)}
    assert kept == {jax.typeof(x), jax.typeof(w)}


def test_a_schedule_that_cannot_serve_the_backward_pass(mesh_of: MeshOf) -> None:
    """Rows are cut in chunks forwards; the gradient of the weights sums over them."""
    mesh = mesh_of((8,), "x")
    x, w = normal(8, 16), normal(16, 32, seed=1)
    chunked = ce.Schedule("chunked", chunks=2, label="b")

    def einsum(x: Any, w: Any) -> jax.Array:
        return ce.einsum(
            "be,ef->bf", x, w, in_specs=(P(None, "x"), P("x")), out_sharding=P(None, "x"),
            mesh=mesh, schedule=chunked,
        )  # fmt: skip

    got = jax.jit(jax.grad(loss(einsum), (0, 1)))(x, w)
    close(got, jax.grad(loss(jnp.matmul), (0, 1))(x, w))
