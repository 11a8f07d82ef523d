"""Derivatives against those of lax's collectives: both operands, any order, what is kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.cost import select

from .oracle import (
    Case,
    MeshOf,
    assert_close,
    by_lax,
    hlo,
    on_devices,
    ours,
    random,
    schedules,
    shard,
    wide,
)

RING = ((3,), (("x",),))
TORUS = ((2, 4), (("y", "x"),))
BOTH = ((2, 2, 2), (("z", "x"), ("y",)))
CASES = [
    (Case("mk,kn->mn", "k", splittable="m"), RING),
    (Case("mk,kn->mn", "m", splittable="k"), RING),
    (Case("mk,kn->nm", "k", "rhs", splittable="n"), RING),
    (Case("bmk,bkn->bnm", "b", splittable="m"), RING),
    (Case("mk,kn->mn", scatter="n", splittable="m"), RING),
    (Case("bmk,bkn->bnm", scatter="b", splittable="m"), RING),
    (Case("mk,kn->mn", reduce=True, splittable="m"), RING),
    (Case("mk,kn->mn", "k", scatter="n", splittable="m"), ((2, 3), (("x",), ("y",)))),
    (Case("mk,kn->mn", "k", splittable="m"), TORUS),
    (Case("mk,kn->mn", scatter="n", splittable="m"), TORUS),
    (Case("mk,kn->mn", "k", scatter="n", splittable="m"), BOTH),
    (Case("bbk,kan->bn", "k"), RING),
]


def case_id(case: Any) -> str:
    what, (shape, _) = case
    return f"{what} on {'x'.join(map(str, shape))}"


def setup(mesh_of: MeshOf, case: Case, where: Any) -> tuple[Any, Any, list[np.ndarray]]:
    shape, axes = where
    mesh = mesh_of(shape, "xyz"[: len(shape)])
    sizes = [math.prod(mesh.shape[name] for name in names) for names in axes]
    both = case.gather and case.scatter
    ng, ns = sizes if both else (sizes[0], 1) if case.gather else (1, sizes[0])
    return mesh, sum(axes, ()), case.operands(ng, ns)


def loss_of(product: Callable[..., Any]) -> Callable[..., Any]:
    # Not linear, so that cotangents differ from element to element and second derivatives are.
    return lambda *operands: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(product(*operands)))


@pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no vma"])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_grad(mesh_of: MeshOf, case: Any, check_vma: bool) -> None:
    what, where = case
    mesh, names, operands = setup(mesh_of, what, where)
    axes = where[1]
    chosen = (
        [*schedules(what.splittable, what.free)[2:5:2], *schedules(what.splittable, what.free)[-1:]]
        if check_vma
        else ["latency"]
    )

    def every(*operands: Any) -> Any:
        def grad(product: Any) -> Any:
            return jax.value_and_grad(loss_of(product), argnums=(0, 1))(*operands)

        found = {
            str(s): grad(lambda a, b, s=s: ours(what, a, b, *axes, schedule=s, precision="highest"))
            for s in chosen
        }
        return found, grad(lambda a, b: by_lax(what, a, b, *axes))

    got, want = on_devices(mesh, names, every, *operands, check_vma=check_vma)
    for i in range(2):
        each = {schedule: grads[1][i] for schedule, grads in got.items()}
        assert_close(each, wide(want[1][i]), dtype=np.float32)
    assert_close({schedule: value for schedule, (value, _) in got.items()}, wide(want[0]))


@pytest.mark.parametrize(
    "case",
    [
        (Case("mk,kn->mn", "k", splittable="m"), RING),
        (Case("mk,kn->mn", "m", splittable="k"), TORUS),
        (Case("mk,kn->mn", scatter="n", splittable="m"), RING),
        (Case("mk,kn->mn", "k", scatter="n", splittable="m"), BOTH),
        (Case("mk,kn->mn", reduce=True, splittable="m"), RING),
    ],
    ids=case_id,
)
def test_grad_of_a_sequence(mesh_of: MeshOf, case: Any) -> None:
    what, where = case
    mesh, names, (lhs, rhs) = setup(mesh_of, what, where)
    axes = where[1]
    rights = [rhs, random(rhs.shape, 5), random(rhs.shape, 6)]
    chosen = ["latency", schedules(what.splittable, what.free)[-1]]

    def every(lhs: Any, *rights: Any) -> Any:
        def grads(product: Any) -> Any:
            # Of everything, and of one right operand alone.
            loss = loss_of(product)
            return (
                jax.grad(loss, argnums=(0, 1))(lhs, rights),
                jax.grad(lambda w: loss(lhs, (rights[0], w, rights[2])))(rights[1]),
            )

        found = {
            str(s): grads(lambda a, b, s=s: ours(what, a, b, *axes, schedule=s)) for s in chosen
        }
        return found, grads(lambda a, b: [by_lax(what, a, w, *axes) for w in b])

    got, want = on_devices(mesh, names, every, lhs, *rights)
    for schedule, found in got.items():
        for y, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert_close({schedule: y}, wide(expected))


@pytest.mark.parametrize("case", [CASES[0], CASES[4], CASES[6], CASES[10]], ids=case_id)
def test_forward_mode_and_second_derivatives(mesh_of: MeshOf, case: Any) -> None:
    what, where = case
    mesh, names, operands = setup(mesh_of, what, where)
    axes = where[1]
    tangents = [random(x.shape, 10 + i) for i, x in enumerate(operands)]

    def every(*args: Any) -> Any:
        operands, tangents = args[:2], args[2:]

        def derivatives(product: Any) -> Any:
            loss = loss_of(product)
            gradient = jax.grad(loss, argnums=(0, 1))
            right = lambda w: gradient(operands[0], w)[1]  # noqa: E731
            return (
                jax.jvp(product, operands, tangents)[1],
                # One operand moves, the other has no tangent.
                jax.jvp(lambda w: product(operands[0], w), operands[1:], tangents[1:])[1],
                jax.jvp(gradient, operands, tangents)[1],
                jax.vjp(gradient, *operands)[1](tangents),
                jax.jacfwd(right)(operands[1]),
            )

        found = {
            s: derivatives(lambda a, b, s=s: ours(what, a, b, *axes, schedule=s))
            for s in ("latency",)
        }
        return found, derivatives(lambda a, b: by_lax(what, a, b, *axes))

    got, want = on_devices(mesh, names, every, *operands, *tangents)
    for schedule, found in got.items():
        for y, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert_close({schedule: y}, wide(expected), tolerance=1e-4)


@pytest.mark.parametrize("case", [CASES[0], CASES[1], CASES[3], CASES[4], CASES[7]], ids=case_id)
def test_residuals_are_the_local_shards(mesh_of: MeshOf, case: Any) -> None:
    what, where = case
    mesh, names, operands = setup(mesh_of, what, where)
    kept: list[tuple[int, ...]] = []

    def keep(*operands: Any) -> Any:
        product = lambda a, b: ours(what, a, b, *where[1], schedule="latency")  # noqa: E731
        y, backward = jax.vjp(product, *operands)
        kept[:] = [leaf.shape for leaf in jax.tree.leaves(backward)]
        return y

    jax.make_jaxpr(shard(mesh, names, keep))(*operands)
    assert sorted(kept) == sorted(x.shape[1:] for x in operands)


@pytest.mark.parametrize(("schedule", "kept"), [("blocking", 0), ("latency", 0), (None, 1)])
def test_memory_of_a_scan_over_layers(mesh_of: MeshOf, schedule: Any, kept: int) -> None:
    # lax's gathered operand is kept for the backward pass of every layer; here it is not.
    layers, m, k, n = 8, 64, 32, 8
    case = Case("mk,kn->mn", "k")

    def loss(x: Any, weights: Any) -> Any:
        def layer(x: Any, w: Any) -> Any:
            if schedule is None:
                return jnp.sin(by_lax(case, x, w, ("x",))), None
            return jnp.sin(ours(case, x, w, ("x",), schedule=schedule)), None

        return jnp.sum(jax.lax.scan(layer, x, weights)[0])

    x, weights = random((n, m, k)), random((n, layers, n * k, k), 1)
    program = shard(mesh_of((n,), "x"), ("x",), jax.grad(loss, argnums=(0, 1)))
    memory = jax.jit(program).lower(x, weights).compile().memory_analysis()
    gathered = layers * m * k * n * 4
    assert memory is not None
    assert (memory.temp_size_in_bytes > gathered) == bool(kept)


def test_the_backward_pass_is_the_mirrored_ring(mesh_of: MeshOf) -> None:
    n, case = 5, Case("mk,kn->mn", "k")
    scatter = Case("mk,kn->mn", scatter="n")
    mesh, names = mesh_of((n,), "x"), ("x",)

    def permutes(case: Case, backward: bool, schedule: Any) -> int:
        lhs, rhs = case.operands(n if case.gather else 1, 1 if case.gather else n)

        def run(lhs: Any, rhs: Any) -> Any:
            product = lambda a, b: ours(case, a, b, names, schedule=schedule)  # noqa: E731
            if not backward:
                return product(lhs, rhs)
            return jax.grad(loss_of(product), argnums=(0, 1))(lhs, rhs)

        text = hlo(mesh, names, run, lhs, rhs)
        for name in ("all_gather", "reduce_scatter", "all_reduce"):
            assert f"stablehlo.{name}" not in text
        return text.count("stablehlo.collective_permute")

    for schedule, each in (("unidirectional", n - 1), ("bidirectional", 2 * (n - 1))):
        for what in (case, scatter):
            assert permutes(what, False, schedule) == each
            # There, back, and once more round for the other operand.
            assert permutes(what, True, schedule) == 3 * each


def test_dtypes_of_cotangents(mesh_of: MeshOf) -> None:
    lhs, rhs = random((4, 6, 8)).astype(jnp.bfloat16), random((4, 32, 5), 1)
    z = random((4, 32, 5), 2, np.complex64)

    def grads(lhs: Any, rhs: Any, z: Any) -> Any:
        def wide_result(a: Any, b: Any) -> Any:
            y = ce.all_gather_einsum("mk,kn->mn", a, b, axis_name="x", gather="k")
            return jnp.sum(jnp.abs(y).astype(jnp.float32))

        with jax.numpy_dtype_promotion("standard"):
            mixed = jax.grad(wide_result, argnums=(0, 1))(lhs, rhs)
            real = jax.grad(wide_result)(lhs.astype(jnp.float32), z)
            return *mixed, real

    def by_lax_too(lhs: Any, rhs: Any, z: Any) -> Any:
        def loss(a: Any, b: Any) -> Any:
            return jnp.sum(jnp.abs(by_lax(Case("mk,kn->mn", "k"), a, b, ("x",))))

        a = lhs.astype(jnp.float32)
        with jax.numpy_dtype_promotion("standard"):
            return *jax.grad(loss, argnums=(0, 1))(a, rhs), jax.grad(loss)(a, z)

    mesh = mesh_of((4,), "x")
    got = on_devices(mesh, ("x",), grads, lhs, rhs, z)
    want = on_devices(mesh, ("x",), by_lax_too, lhs, rhs, z)
    assert [y.dtype for y in got] == [jnp.bfloat16, np.float32, np.float32]
    for y, expected, tolerance in zip(got, want, (2.0**-7, 1e-5, 1e-5), strict=True):
        assert_close({"": y}, wide(expected), tolerance=tolerance)


def test_remat_recomputes_the_ring(mesh_of: MeshOf) -> None:
    case, n = Case("mk,kn->mn", "k"), 4
    lhs, rhs = case.operands(n)

    def run(lhs: Any, rhs: Any) -> Any:
        product = lambda a, b: jnp.sin(ours(case, a, b, ("x",), schedule="latency"))  # noqa: E731
        plain = jax.grad(loss_of(product), argnums=(0, 1))(lhs, rhs)
        remat = jax.grad(loss_of(jax.checkpoint(product)), argnums=(0, 1))(lhs, rhs)
        return plain, remat

    plain, remat = on_devices(mesh_of((n,), "x"), ("x",), run, lhs, rhs)
    for a, b in zip(plain, remat, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_schedule_value_serves_the_backward_pass(mesh_of: MeshOf) -> None:
    case, n = Case("mk,kn->mn", "m", splittable="k"), 4
    schedule = Schedule("chunked", "bidirectional", chunks=5, label="k", wire_dtype=jnp.bfloat16)
    lhs, rhs = case.operands(n)

    def run(lhs: Any, rhs: Any) -> Any:
        product = lambda a, b: ours(case, a, b, ("x",), schedule=schedule)  # noqa: E731
        reference = lambda a, b: by_lax(case, a, b, ("x",))  # noqa: E731
        return [jax.grad(loss_of(f), argnums=(0, 1))(lhs, rhs) for f in (product, reference)]

    got, want = on_devices(mesh_of((n,), "x"), ("x",), run, lhs, rhs)
    for y, expected in zip(got, want, strict=True):
        error = np.abs(wide(y) - wide(expected)).max() / np.abs(expected).max()
        assert 1e-6 < error < 0.03


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_whatever_auto_chooses_for_a_derivative_serves_it(
    mesh_of: MeshOf, case: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Derived einsums under each of the schedules that "auto" compares, in turns."""
    what, where = case
    mesh, names, operands = setup(mesh_of, what, where)
    axes, ranked, turn = where[1], select.rank, [0]

    def in_turns(*arguments: Any) -> Any:
        choice = ranked(*arguments)
        rows = sorted(choice.rows, key=lambda row: str(row.schedule))
        turn[0] += 1
        place = turn[0] % len(rows)
        seen.add((choice.einsum, str(rows[place].schedule)))
        return dataclasses.replace(choice, rows=(rows[place], *rows[:place], *rows[place + 1 :]))

    seen: set[tuple[str, str]] = set()
    monkeypatch.setattr(select, "rank", in_turns)

    def every(*operands: Any) -> Any:
        def grad(product: Any) -> Any:
            return jax.grad(loss_of(product), argnums=(0, 1))(*operands)

        found = {
            f"turn {i}": grad(
                lambda a, b: ours(what, a, several(b), *axes, schedule="auto", precision="highest")
            )
            for i in range(5)
        }
        return found, grad(lambda a, b: [by_lax(what, a, w, *axes) for w in several(b)])

    def several(b: Any) -> list[Any]:
        return [(i + 1) * b for i in range(count)]

    got, want = on_devices(mesh, names, every, *operands)
    for i in range(2):
        each = {turn: grads[i] for turn, grads in got.items()}
        assert_close(each, wide(want[i]), dtype=np.float32)
    assert len(seen) >= 4
