"""Shards used as they arrive, against an all-gather of all of them; and the ring through a torus."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.ops.schedule import ROLL_FROM
from collective_einsum.rings.hamiltonian_rings import disjoint_rings, hamiltonian_ring

from .oracle import RINGS, TORI, MeshOf, on_devices, random, torus_id

SCHEDULES = [
    "auto",
    "latency",
    "unidirectional",
    "blocking",
    Schedule("ring", "latency", rolled=True),
    Schedule("ring", "unidirectional", rolled=True),
]


def check(mesh_of: MeshOf, torus: Any, schedules: list[Any]) -> None:
    """Every device finds each shard at its index, once, and of all items."""
    shape, mesh_names, names = torus
    mesh = mesh_of(shape, mesh_names)
    n = math.prod(mesh.shape[name] for name in names)
    shard = random((n, 3, 2))

    def run(x: Any) -> Any:
        def put(carry: Any, each: Any, index: Any) -> Any:
            found, count = carry
            # An item that is added says whether the items of a device came together.
            first, second = each
            return found.at[index].add(first["x"] + 2 * second), count + 1

        def fold(items: Any, schedule: Any) -> Any:
            init = (jnp.zeros((n, 3, 2)), jnp.zeros((), jnp.int32))
            axis_name = names[0] if len(names) == 1 else names
            return ce.all_gather_fold(put, init, items, axis_name=axis_name, schedule=schedule)

        return {
            str(schedule) + type(items).__name__: fold(items, schedule)
            for schedule in schedules
            for items in ([{"x": x}, x], ({"x": x}, x))
        }

    for name, (found, count) in on_devices(mesh, names, run, shard).items():
        np.testing.assert_allclose(found, np.stack([3 * shard] * n), rtol=1e-6, err_msg=name)
        assert (count == n).all(), name


@pytest.mark.parametrize("n", RINGS)
def test_ring(mesh_of: MeshOf, n: int) -> None:
    check(mesh_of, ((n,), "x", ("x",)), SCHEDULES)


@pytest.mark.parametrize("torus", TORI, ids=torus_id)
def test_torus(mesh_of: MeshOf, torus: Any) -> None:
    check(mesh_of, torus, ["latency", SCHEDULES[-1]])


def total(x: Any, w: Any, schedule: Any) -> Any:
    """The sum over all devices' w of a function of x and w, that no einsum is."""
    init = jnp.zeros((4, 2))
    return ce.all_gather_fold(
        lambda y, each, _: y + jnp.tanh(x @ each), init, w, axis_name="x", schedule=schedule
    )


def reference(x: Any, w: Any) -> Any:
    return sum(jnp.tanh(x @ w[3 * i : 3 * i + 3]) for i in range(4))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("check_vma", [True, False])
def test_gradients(mesh_of: MeshOf, schedule: Any, check_vma: bool) -> None:
    x, w = jnp.asarray(random((4, 3))), jnp.asarray(random((12, 2), 1))

    def loss(x: Any, w: Any) -> Any:
        # The same x on all devices: each holds all of the sum.
        return lax.pmean((total(x, w, schedule) ** 2).sum(), "x")

    whole = jax.shard_map(
        loss,
        mesh=mesh_of((4,), "x"),
        in_specs=(P(), P("x")),
        out_specs=P(),
        check_vma=check_vma,
    )
    got = jax.jit(jax.grad(whole, (0, 1)))(x, w)
    want = jax.grad(lambda x, w: (reference(x, w) ** 2).sum(), (0, 1))(x, w)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_under_vmap_and_scan(mesh_of: MeshOf) -> None:
    x, w = random((5, 4, 3)), random((5, 12, 2), 1)

    def local(x: Any, w: Any) -> Any:
        one = lambda x, w: total(x, w, "latency")  # noqa: E731
        _, scanned = lax.scan(lambda c, each: (c, one(*each)), None, (x, w))
        return jax.vmap(one)(x, w)[None], scanned[None]

    run = jax.shard_map(
        local, mesh=mesh_of((4,), "x"), in_specs=(P(), P(None, "x")), out_specs=P("x")
    )
    want = np.stack([np.asarray(reference(a, b)) for a, b in zip(x, w, strict=True)])
    for found in jax.jit(run)(x, w):
        np.testing.assert_allclose(found, np.stack([want] * 4), rtol=1e-5, atol=1e-6)


def test_a_long_ring_is_a_loop(mesh_of: MeshOf) -> None:
    def size(schedule: Any) -> int:
        run = jax.shard_map(
            lambda x, w: total(x, w, schedule)[None],
            mesh=mesh_of((8,), "x"),
            in_specs=(P(), P("x")),
            out_specs=P("x"),
        )
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 3), (24, 2))]
        return jax.jit(run).lower(*shapes).as_text().count("dot_general")

    rolled = Schedule("ring", "unidirectional", rolled=True)
    assert size(rolled) < size("unidirectional") == 8


@pytest.mark.parametrize("schedule", ["unidirectional", "latency"])
def test_a_ring_is_a_loop_from_the_size_that_its_schedule_names(schedule: str) -> None:
    """As einsums' rings: of 16 devices, and of one axis as of two."""

    def is_loop(sizes: tuple[int, ...], axes: tuple[str, ...]) -> bool:
        mesh: Any = jax.sharding.AbstractMesh(sizes, axes)
        run = jax.shard_map(
            lambda x: ce.all_gather_fold(
                lambda carry, shard, _: carry + shard,
                jnp.zeros_like(x),
                x,
                axis_name=axes,
                schedule=schedule,
            ),
            mesh=mesh,
            in_specs=P(axes),
            out_specs=P(axes),
        )
        sharding = NamedSharding(mesh, P(axes))
        x = jax.ShapeDtypeStruct((math.prod(sizes), 2), jnp.float32, sharding=sharding)
        lowered = jax.jit(run).trace(x).lower(lowering_platforms=("tpu",))
        return "stablehlo.while" in lowered.as_text()

    assert ROLL_FROM == 16
    assert is_loop((16,), ("x",))
    assert is_loop((4, 4), ("x", "y"))
    assert not is_loop((15,), ("x",))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axis_name": "q"}, "axis 'q' is not a manual mesh axis"),
        ({"schedule": "chunked"}, "sends halves of shards, and fn takes unsliced ones"),
        ({"schedule": "bidirectional"}, "choose 'auto', 'latency', 'unidirectional'"),
        ({"schedule": "slow"}, "schedule='slow' is unknown"),
        ({"schedule": Schedule(wire_dtype=jnp.bfloat16)}, "has a wire_dtype; cast the shards"),
        ({"shards": []}, "shards hold no array to gather"),
        ({"fn": lambda c, each, i: c[0]}, "both must have the same structure, shapes and dtypes"),
        ({"fn": lambda c, each, i: (c, c)}, "both must have the same structure"),
        ({"fn": lambda c, each, i: c.astype(jnp.bfloat16)}, "bfloat16"),
    ],
)
def test_says_what_is_wrong(mesh_of: MeshOf, options: dict[str, Any], words: str) -> None:
    def local(x: Any) -> Any:
        given = {"fn": lambda c, each, i: c + each, "init": x, "shards": x, "axis_name": "x"}
        given |= options
        return ce.all_gather_fold(given.pop("fn"), given.pop("init"), given.pop("shards"), **given)

    run = jax.shard_map(local, mesh=mesh_of((4,), "x"), in_specs=P("x"), out_specs=P("x"))
    with pytest.raises(ValueError, match=words):
        jax.jit(run).lower(jnp.zeros((8, 2)))


def links(ring: list[Any]) -> list[Any]:
    """Pairs of places, as a ring goes."""
    return list(zip(ring, [*ring[1:], ring[0]], strict=True))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_a_hamiltonian_ring_goes_everywhere_once_between_neighbours(
    sizes: list[int],
) -> None:
    found = hamiltonian_ring(sizes)
    assert sorted(found) == list(itertools.product(*map(range, sizes)))
    steps = [sum(abs(a - b) for a, b in zip(*link, strict=True)) for link in links(found)]
    several = sum(n > 1 for n in sizes) > 1
    if several and any(n % 2 == 0 for n in sizes):
        assert set(steps) == {1}


SIDES = st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=2, max_size=3)


@given(SIDES)
@example([(4, True), (4, True)])
@example([(4, True), (4, True), (4, True)])
@example([(8, True), (4, True)])
def test_disjoint_rings_share_no_link(sides: list[tuple[int, bool]]) -> None:
    sizes, closed = zip(*sides, strict=True)
    found = disjoint_rings(sizes, closed)
    for ring in found:
        assert sorted(ring) == list(itertools.product(*map(range, sizes)))
    if len(found) == 1:
        assert found == [hamiltonian_ring(sizes)]
        return
    walked = [link for ring in found for link in links(ring)]
    assert len({frozenset(link) for link in walked}) == len(walked)
    for link in walked:
        (axis,) = [i for i, (a, b) in enumerate(zip(*link, strict=True)) if a != b]
        far = abs(link[0][axis] - link[1][axis])
        assert far == 1 or (closed[axis] and far == sizes[axis] - 1)


def test_a_torus_of_v4_has_two_disjoint_rings() -> None:
    assert (
        len(disjoint_rings((4, 4), (True, True)))
        == len(disjoint_rings((4, 4, 4), (True,) * 3))
        == 2
    )
    assert (
        len(disjoint_rings((4, 4), (True, False)))
        == len(disjoint_rings((2, 4), (False, True)))
        == 1
    )
