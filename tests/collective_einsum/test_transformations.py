"""jit, vmap, scan and meshes of every kind, with and without the check of varying axes."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from tests.products import sampled

from .oracle import (
    Case,
    MeshOf,
    assert_close,
    by_lax,
    on_devices,
    ours,
    random,
    schedules,
    shard,
    wide,
)

pytestmark = pytest.mark.slow

GATHER = Case("mk,kn->mn", "k", splittable="m")
CASES = [
    GATHER,
    Case("mk,kn->mn", "n", "rhs", splittable="k"),
    Case("bmk,bkn->bmn", "b", splittable="m"),
    Case("mk,kn->mn", scatter="m", splittable="n"),
    Case("mk,kn->mn", reduce=True, splittable="m"),
]
N = 4


def operands_of(case: Case, *lead: int) -> list[np.ndarray]:
    ng, ns = (N, 1) if case.gather else (1, N)
    return [
        random((N, *lead, *case.shape(side, ng, ns)), i) for i, side in enumerate(("lhs", "rhs"))
    ]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_eager_is_jitted_and_the_same_bits_come_twice(mesh_of: MeshOf, case: Case) -> None:
    lhs, rhs = operands_of(case)

    def run(lhs: Any, rhs: Any) -> Any:
        return [
            ours(case, lhs, rhs, ("x",), schedule=s) for s in schedules(case.splittable, case.free)
        ]

    program = shard(mesh_of((N,), "x"), ("x",), run)
    jitted = jax.jit(program)
    first, second = jitted(lhs, rhs), jitted(lhs, rhs)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    latency = shard(
        mesh_of((N,), "x"), ("x",), lambda *args: ours(case, *args, ("x",), schedule="latency")
    )
    np.testing.assert_allclose(latency(lhs, rhs), first[3], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "in_axes"), sampled(CASES, [(0, 0), (0, None), (None, 1), (1, 0)], 2), ids=str
)
def test_vmap_inside(mesh_of: MeshOf, case: Case, in_axes: Any) -> None:
    lhs, rhs = (
        np.moveaxis(random((2, *x.shape), 5 + i), 0, 1 + (d or 0)) if d is not None else x
        for i, (x, d) in enumerate(zip(operands_of(case), in_axes, strict=True))
    )
    chosen = ["bidirectional", schedules(case.splittable, case.free)[-1]]

    def run(lhs: Any, rhs: Any) -> Any:
        found = {}
        for s in chosen:

            def one(lhs: Any, rhs: Any, s: Any = s) -> Any:
                return ours(case, lhs, rhs, ("x",), schedule=s)

            # The value, and the gradient through it.
            def loss(lhs: Any, rhs: Any, one: Any = one) -> Any:
                return jnp.sum(jnp.sin(jax.vmap(one, in_axes)(lhs, rhs)))

            found[str(s)] = (jax.vmap(one, in_axes)(lhs, rhs), jax.grad(loss, (0, 1))(lhs, rhs))
        reference = lambda a, b: by_lax(case, a, b, ("x",))  # noqa: E731
        expected = lambda a, b: jax.vmap(reference, in_axes)(a, b)  # noqa: E731
        gradient = jax.grad(lambda a, b: jnp.sum(jnp.sin(expected(a, b))), (0, 1))
        return found, (expected(lhs, rhs), gradient(lhs, rhs))

    got, want = on_devices(mesh_of((N,), "x"), ("x",), run, lhs, rhs)
    for schedule, found in got.items():
        for y, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert_close({schedule: y}, wide(expected))


def test_vmap_of_a_sequence_of_which_one_is_mapped(mesh_of: MeshOf) -> None:
    lhs, rhs = operands_of(GATHER)
    mapped = random((N, 3, *rhs.shape[1:]), 9)

    def run(lhs: Any, rhs: Any, mapped: Any) -> Any:
        def one(w: Any) -> Any:
            return ours(GATHER, lhs, [rhs, w], ("x",), schedule="latency")

        def reference(w: Any) -> Any:
            return [by_lax(GATHER, lhs, each, ("x",)) for each in (rhs, w)]

        return jax.vmap(one)(mapped), jax.vmap(reference)(mapped)

    got, want = on_devices(mesh_of((N,), "x"), ("x",), run, lhs, rhs, mapped)
    for y, expected in zip(got, want, strict=True):
        assert_close({"latency": y}, wide(expected))


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_vmap_outside(mesh_of: MeshOf, case: Case) -> None:
    lhs, rhs = operands_of(case, 2)

    def program(schedule: Any) -> Any:
        one = shard(
            mesh_of((N,), "x"), ("x",), lambda *args: ours(case, *args, ("x",), schedule=schedule)
        )
        return jax.jit(jax.vmap(one, in_axes=1, out_axes=1))

    ng, ns = (N, 1) if case.gather else (1, N)
    want = np.stack([case.expected(lhs[:, i], rhs[:, i], ng, ns) for i in range(2)], axis=1)
    got = {
        s: program(s)(lhs, rhs)
        for s in ("bidirectional", schedules(case.splittable, case.free)[-1])
    }
    assert_close(got, want)


def test_scan_over_layers(mesh_of: MeshOf) -> None:
    # 2D weight-stationary feedforward layers, their operands sharded over one axis.
    x, up = random((N, 3, 2)), random((N, 5, 8, 6), 1) / 3
    down = random((N, 5, 6, 8), 2) / 3

    def run(x: Any, up: Any, down: Any) -> Any:
        def through(gathered: Any, scattered: Any) -> Any:
            def layer(x: Any, w: Any) -> Any:
                h = jnp.tanh(gathered(x, w[0]))
                return x + scattered(h, w[1]), jnp.sum(h)

            def loss(x: Any, up: Any, down: Any) -> Any:
                y, sums = jax.lax.scan(layer, x, (up, down))
                return jnp.sum(y**2) + jnp.sum(sums)

            return jax.value_and_grad(loss, argnums=(0, 1, 2))(x, up, down)

        scatter = Case("mk,kn->mn", scatter="n")

        def scheduled(s: Any) -> Any:
            return through(
                lambda a, b: ours(GATHER, a, b, ("x",), schedule=s),
                lambda a, b: ours(scatter, a, b, ("x",), schedule=s),
            )

        found = {str(s): scheduled(s) for s in ("auto", "latency", Schedule(rolled=True))}
        want = through(
            lambda a, b: by_lax(GATHER, a, b, ("x",)), lambda a, b: by_lax(scatter, a, b, ("x",))
        )
        return found, want

    got, want = on_devices(mesh_of((N,), "x"), ("x",), run, x, up, down)
    for schedule, found in got.items():
        for y, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert_close({schedule: y}, wide(expected), tolerance=1e-4)


@pytest.mark.parametrize(
    ("case", "types"),
    sampled(CASES, list(itertools.product((AxisType.Auto, AxisType.Explicit), repeat=2)), 2),
    ids=str,
)
def test_partly_manual_meshes(mesh_of: MeshOf, case: Case, types: Any) -> None:
    # Over x by hand; the first label of lhs is sharded over y by jax.
    mesh = jax.make_mesh((N, 2), ("x", "y"), axis_types=types)
    lhs, rhs = operands_of(case)
    if case.gather == "b":
        # Three of them do not divide.
        lhs, rhs = lhs[:, :2], rhs[:, : 2 * N]
    chosen = ["bidirectional", schedules(case.splittable, case.free)[-1]]

    def run(lhs: Any, rhs: Any) -> Any:
        def loss(lhs: Any, rhs: Any, schedule: Any) -> Any:
            return jnp.sum(jnp.sin(ours(case, lhs, rhs, ("x",), schedule=schedule)))

        found = {
            str(s): (
                ours(case, lhs[0], rhs[0], ("x",), schedule=s),
                jax.grad(loss, (0, 1))(lhs[0], rhs[0], s),
            )
            for s in chosen
        }
        return jax.tree.map(lambda y: y[None], found)

    with jax.set_mesh(mesh):
        args = [
            jax.device_put(x, NamedSharding(mesh, spec))
            for x, spec in ((lhs, P("x", "y")), (rhs, P("x")))
        ]
        program = jax.shard_map(run, axis_names={"x"}, in_specs=P("x"), out_specs=P("x"))
        got = jax.tree.map(np.asarray, jax.jit(program)(*args))

    def reference(lhs: Any, rhs: Any) -> Any:
        loss = lambda a, b: jnp.sum(jnp.sin(by_lax(case, a, b, ("x",))))  # noqa: E731
        return by_lax(case, lhs, rhs, ("x",)), jax.grad(loss, (0, 1))(lhs, rhs)

    want = on_devices(mesh_of((N,), "x"), ("x",), reference, lhs, rhs)
    for schedule, found in got.items():
        for y, expected in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
            assert_close({schedule: y}, wide(expected))


def test_explicit_axes_stay_in_the_types() -> None:
    mesh = jax.make_mesh((N, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)

    def run(x: Any, w: Any) -> Any:
        y = ce.all_gather_einsum("mk,kn->nm", x, w, axis_name="x", gather="k")
        assert jax.typeof(y).sharding.spec == P(None, "y")
        several = ce.all_gather_einsum("mk,kn->mn", x, [w, w], axis_name="x", gather="k")
        assert [jax.typeof(y).sharding.spec for y in several] == [P("y", None)] * 2
        assert jax.typeof(ce.all_reduce(x, "x")).sharding.spec == P("y", None)
        for spec, words in (
            ("mk,kn->n", "'m' is summed over and sharded over the Explicit axis 'y'"),
            ("mk,pn->mkp", "'m' and 'p' are both sharded over the Explicit axis 'y'"),
        ):
            right = jax.sharding.reshard(jnp.ones((4, 4)), P(*(["y"] if "p" in spec else [None])))
            with pytest.raises(ValueError, match=words):
                ce.einsum_all_reduce(spec, x, right, axis_name="x")
        return y

    with jax.set_mesh(mesh):
        x = jax.device_put(random((4, 20)), NamedSharding(mesh, P("y", "x")))
        w = jax.device_put(random((20, 3), 1), NamedSharding(mesh, P()))
        program = jax.shard_map(
            run, axis_names={"x"}, in_specs=(P(None, "x"), P()), out_specs=P("x", None)
        )
        y = np.asarray(jax.jit(program)(x, w))
    np.testing.assert_allclose(y[:3], (wide(x) @ wide(w)).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("check_vma", [True, False], ids=["vma", "no vma"])
@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "auto"])
def test_the_result_types_are_those_of_lax(
    mesh_of: MeshOf, explicit: bool, check_vma: bool
) -> None:
    mesh = mesh_of((2, 4), "xy", explicit=explicit)
    x, w = random((8, 16)), random((16, 4), 1)

    def run(x: Any, w: Any) -> Any:
        # x is BE_y and w is E_y F; only the weights of the scatter vary over x.
        h = ce.all_gather_einsum("be,ef->bf", x, w, axis_name="y", gather="e")
        reduced = ce.einsum_all_reduce("be,ef->bf", x, w[:4], axis_name="y", schedule="latency")
        block = ce.einsum_reduce_scatter("be,ef->bf", x, w[:4], axis_name="y", scatter="b")
        total = ce.all_reduce(x, "y", schedule="bidirectional")
        return h, reduced, block, total

    # What lax.psum leaves equal may go out as equal; a gathered label is equal but not known to be.
    out_specs = (P(None, "y"), P(), P("y"), P())
    program = jax.shard_map(
        run, mesh=mesh, in_specs=(P(None, "y"), P()), out_specs=out_specs, check_vma=check_vma
    )
    args = [jax.device_put(a, NamedSharding(mesh, p)) for a, p in ((x, P(None, "y")), (w, P()))]
    h, reduced, block, total = jax.jit(program)(*args)
    rows = np.split(wide(x), 4, axis=1)
    each = sum(part @ wide(w)[:4] for part in rows)
    np.testing.assert_allclose(reduced, each, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(block, each, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(total, sum(rows), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(h, np.tile(wide(x) @ wide(w), (1, 4)), rtol=1e-4, atol=1e-4)


def test_operands_that_vary_over_different_axes(mesh_of: MeshOf) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    x, w = random((2, 3, 4)), random((2, 8, 5), 1)

    def run(x: Any, w: Any) -> Any:
        def loss(x: Any, w: Any) -> Any:
            y = ours(GATHER, x[0], w[0], ("y",), schedule="latency")
            return jax.lax.psum(jnp.sum(jnp.sin(y)), ("x", "y"))

        return jax.value_and_grad(loss, (0, 1))(x, w)

    # x differs along y and w along x; nothing differs along z.
    specs = (P("y"), P("x"))
    value, (gx, gw) = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=(P(), specs))
    )(x, w)
    whole = jnp.concatenate(list(x), axis=-1)

    def plain(x: Any, w: Any) -> Any:
        whole = jnp.concatenate(list(x), axis=-1)
        return 2 * jnp.sum(jnp.sin(jnp.einsum("mk,xkn->xmn", whole, w, precision="highest")))

    assert whole.shape == (3, 8)
    expected, (ex, ew) = jax.value_and_grad(plain, (0, 1))(jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gx, ex, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gw, ew, rtol=1e-4, atol=1e-4)
