"""The ring collectives against lax's definitions, taken by numpy on the arrays of all devices."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.ops.schedule import DIRECTIONS
from tests.products import mostly_exhaustive

from .oracle import (
    FEW_TORI,
    RINGS,
    TORI,
    MeshOf,
    assert_close,
    hlo,
    on_devices,
    random,
    torus_id,
    wide,
)

pytestmark = pytest.mark.slow

SCHEDULES = [
    "auto",
    "blocking",
    *DIRECTIONS,
    Schedule("ring", "bidirectional", rolled=True),
    Schedule("ring", "latency", rolled=True),
    "async",
]
FEW_SCHEDULES = ["bidirectional", Schedule("ring", "latency", rolled=True), "async"]


def every_collective(names: tuple[str, ...], chosen: list[Any], every_way: bool) -> Any:
    """All collectives of a shard [3, 4] and of a whole [5, 3 * n, 2 * n], by schedule."""
    axis_name = names[0] if len(names) == 1 else names

    def run(shard: Any, whole: Any) -> Any:
        return {
            f"{name} {schedule}": y
            for schedule in chosen
            for name, y in {
                "gather 0": ce.all_gather(shard, axis_name, schedule=schedule),
                "scatter 1": ce.reduce_scatter(
                    whole, axis_name, scatter_dimension=1, schedule=schedule
                ),
                "reduce shard": ce.all_reduce(shard, axis_name, schedule=schedule),
            }.items()
        } | {
            "swap 1 0": ce.all_to_all(whole, axis_name, 1, 0, schedule="latency"),
            **(other_ways(shard, whole) if every_way else {}),
        }

    def other_ways(shard: Any, whole: Any) -> Any:
        last = chosen[-1]
        return {
            "gather -1": ce.all_gather(shard, axis_name, axis=-1, schedule=last),
            "scatter -1": ce.reduce_scatter(whole, axis_name, scatter_dimension=-1, schedule=last),
            "reduce whole": ce.all_reduce(whole, axis_name, schedule=last),
            "swap 1 0 blocking": ce.all_to_all(whole, axis_name, 1, 0, schedule="blocking"),
            "swap 1 2": ce.all_to_all(whole, axis_name, 1, 2, schedule="latency"),
            "swap 2 2": ce.all_to_all(whole, axis_name, -1, -1, schedule="latency"),
        }

    return run


def expected(shard: np.ndarray, whole: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """What `every_collective` gives: [n, ...] by the name without the schedule."""
    shard, whole = wide(shard), wide(whole)

    def everywhere(x: Any) -> np.ndarray:
        return np.stack([x] * n)

    def swapped(split: int, concat: int) -> np.ndarray:
        blocks = [np.split(x, n, axis=split) for x in whole]
        return np.stack(
            [np.concatenate([blocks[j][i] for j in range(n)], axis=concat) for i in range(n)]
        )

    return {
        "gather 0": everywhere(np.concatenate(list(shard), axis=0)),
        "gather -1": everywhere(np.concatenate(list(shard), axis=-1)),
        "scatter 1": np.stack(np.split(whole.sum(axis=0), n, axis=1)),
        "scatter -1": np.stack(np.split(whole.sum(axis=0), n, axis=-1)),
        "reduce shard": everywhere(shard.sum(axis=0)),
        "reduce whole": everywhere(whole.sum(axis=0)),
        "swap 1 0": swapped(1, 0),
        "swap 1 2": swapped(1, 2),
        "swap 2 2": swapped(2, 2),
    }


def check(mesh_of: MeshOf, torus: Any, chosen: list[Any], every_way: bool) -> None:
    shape, mesh_names, names = torus
    mesh = mesh_of(shape, mesh_names)
    n = math.prod(mesh.shape[name] for name in names)
    shard, whole = random((n, 3, 4)), random((n, 5, 3 * n, 2 * n), 1)
    got = on_devices(mesh, names, every_collective(names, chosen, every_way), shard, whole)
    for name, want in expected(shard, whole, n).items():
        each = {key: y for key, y in got.items() if key.startswith(name)}
        assert each or not every_way, name
        assert_close(each, want, dtype=np.float32)
        if name.startswith("reduce"):
            assert all((y == y[:1]).all() for y in each.values())


@pytest.mark.parametrize("n", RINGS)
def test_ring(mesh_of: MeshOf, n: int) -> None:
    check(mesh_of, ((n,), "x", ("x",)), SCHEDULES, every_way=True)


@pytest.mark.parametrize("torus", mostly_exhaustive(TORI, FEW_TORI), ids=torus_id)
def test_torus(mesh_of: MeshOf, torus: Any) -> None:
    check(mesh_of, torus, ["bidirectional"], every_way=False)


def test_every_way_on_a_torus(mesh_of: MeshOf) -> None:
    check(mesh_of, TORI[1], FEW_SCHEDULES, every_way=True)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint16, np.complex64, jnp.bfloat16])
def test_dtypes(mesh_of: MeshOf, dtype: Any) -> None:
    dtype = jnp.dtype(dtype)
    x = random((4, 8, 3), 0, np.float32 if dtype == jnp.bfloat16 else dtype).astype(dtype)

    def run(x: Any) -> Any:
        return {
            f"{name} {schedule}": y
            for schedule in ("blocking", "bidirectional", "latency")
            for name, y in {
                "gather": ce.all_gather(x, "x", schedule=schedule),
                "scatter": ce.reduce_scatter(x, "x", schedule=schedule),
                "reduce": ce.all_reduce(x, "x", schedule=schedule),
                "swap": ce.all_to_all(x, "x", 0, 1, schedule=schedule),
            }.items()
        }

    got = on_devices(mesh_of((4,), "x"), ("x",), run, x)
    assert {y.dtype for y in got.values()} == {dtype}
    total = wide(x).sum(axis=0)
    tolerance = 3 * 2.0**-8 if dtype == jnp.bfloat16 else 1e-6
    for schedule in ("blocking", "bidirectional", "latency"):
        blocks = np.stack(np.split(total, 4))
        assert_close({"": got[f"scatter {schedule}"]}, blocks, tolerance=tolerance)
        assert_close({"": got[f"reduce {schedule}"]}, np.stack([total] * 4), tolerance=tolerance)
        np.testing.assert_array_equal(
            wide(got[f"gather {schedule}"]), np.stack([np.concatenate(list(wide(x)))] * 4)
        )


def test_integers_wrap_around_as_in_lax(mesh_of: MeshOf) -> None:
    x = np.full((4, 4), 100, np.int8)

    def run(x: Any) -> Any:
        return [ce.all_reduce(x, "x", schedule=s) for s in ("blocking", "latency")]

    blocking, latency = on_devices(mesh_of((4,), "x"), ("x",), run, x)
    np.testing.assert_array_equal(blocking, np.full((4, 4), 400 - 512, np.int8))
    np.testing.assert_array_equal(latency, blocking)


def test_wire_dtype_rounds_what_moves(mesh_of: MeshOf) -> None:
    x = random((4, 8))

    def run(x: Any) -> Any:
        narrow = [
            ce.all_gather(x, "x", schedule=Schedule(kind, "latency", wire_dtype=jnp.bfloat16))
            for kind in ("ring", "blocking")
        ]
        schedule = Schedule("ring", "unidirectional", wire_dtype=jnp.bfloat16)
        return *narrow, ce.reduce_scatter(x, "x", schedule=schedule)

    ring, blocking, scattered = on_devices(mesh_of((4,), "x"), ("x",), run, x)
    rounded = np.concatenate(list(x.astype(jnp.bfloat16))).astype(np.float32)
    np.testing.assert_array_equal(ring, np.stack([rounded] * 4))
    np.testing.assert_array_equal(blocking, ring)
    want = np.stack(np.split(wide(x).sum(axis=0), 4))
    error = np.abs(scattered - want).max()
    # Three hops of bfloat16, of eight bits.
    assert 1e-5 < error < 3 * np.abs(x).max() * 4 * 2.0**-8


@pytest.mark.parametrize("shape", [(), (0,), (3, 5), (2, 8), (16, 1)])
def test_all_reduce_of_any_shape(mesh_of: MeshOf, shape: tuple[int, ...]) -> None:
    x = random((8, *shape))
    meshes = [(mesh_of((8,), "x"), ("x",)), (mesh_of((4, 2), "xy"), ("y", "x"))]
    for mesh, names in meshes:

        def run(x: Any, names: Any = names) -> Any:
            return {str(s): ce.all_reduce(x, names, schedule=s) for s in FEW_SCHEDULES}

        assert_close(on_devices(mesh, names, run, x), np.stack([x.sum(axis=0, dtype=float)] * 8))


def test_empty_arrays(mesh_of: MeshOf) -> None:
    def run(x: Any) -> Any:
        return {
            str(s): (
                ce.all_gather(x, "x", schedule=s),
                ce.reduce_scatter(x, "x", schedule=s),
                ce.all_to_all(x, "x", 0, 1, schedule=s),
            )
            for s in ("blocking", "bidirectional", "latency")
        }

    got = on_devices(mesh_of((4,), "x"), ("x",), run, random((4, 8, 0)))
    for shapes in got.values():
        assert [y.shape for y in shapes] == [(4, 32, 0), (4, 2, 0), (4, 2, 0)]


def test_bidirectional_goes_both_ways(mesh_of: MeshOf) -> None:
    # In each direction a permute for every hop; a reduce of 8 elements is padded to halve them.
    def permutes(function: Any, x: np.ndarray) -> tuple[int, int]:
        text = hlo(mesh_of((4,), "x"), ("x",), function, x)
        pairs = re.findall(r"collective_permute.*?source_target_pairs = dense<\[(.*?)\]>", text)
        ahead, back = (
            sum(pair.startswith(first) for pair in pairs) for first in ("[0, 1]", "[0, 3]")
        )
        return ahead, back

    for x, reduce in itertools.product((random((4, 4)), random((4, 8, 3))), (False, True)):

        def run(x: Any, reduce: bool = reduce) -> Any:
            if reduce:
                return ce.all_reduce(x, "x", schedule="bidirectional")
            return ce.all_gather(x, "x", schedule="bidirectional")

        assert permutes(run, x) == ((6, 6) if reduce else (3, 3))


def test_an_all_reduce_runs_the_links_of_all_axes(mesh_of: MeshOf) -> None:
    mesh = mesh_of((2, 4), "xy")

    def run(x: Any) -> Any:
        return ce.all_reduce(x, ("x", "y"), schedule="unidirectional")

    for shape in ((8, 16), (8, 3, 16), (8, 5)):
        text = hlo(mesh, ("x", "y"), run, random(shape))
        # Two strands, each with a stage on either axis, there and back.
        assert text.count("stablehlo.collective_permute") == 2 * 2 * (1 + 3)


def test_linear_transposes_are_those_of_lax(mesh_of: MeshOf) -> None:
    x, names = random((8, 2, 8)), ("y", "x")
    mesh = mesh_of((2, 4), "xy")

    def run(x: Any) -> Any:
        def loss(x: Any, schedule: str) -> Any:
            rows = jnp.arange(16.0).reshape(16, 1)
            gathered = jnp.tanh(ce.all_gather(x, names, schedule=schedule)) * rows
            swapped = jnp.sin(ce.all_to_all(x, names, 1, 0, schedule=schedule))
            scattered = ce.reduce_scatter(gathered, names, schedule=schedule) ** 2
            reduced = ce.all_reduce(x * 0.1, names, schedule=schedule) ** 3
            return jnp.sum(scattered) + jnp.sum(swapped) + jnp.sum(reduced)

        return {s: jax.grad(loss)(x, s) for s in ("blocking", "latency", "bidirectional")}

    got = on_devices(mesh, names, run, x)
    assert_close(got, wide(got["blocking"]))
    assert np.abs(got["blocking"]).max() > 1
