"""all_gather_einsum_reduce_scatter: gathers and scatters of all roles, over rings and tori."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import pytest

import collective_einsum as ce
from collective_einsum import Schedule
from tests.products import sampled

from .oracle import (
    Case,
    MeshOf,
    all_schedules,
    assert_close,
    on_devices,
    random,
    schedules,
    torus_schedules,
)

pytestmark = pytest.mark.slow

CASES = [
    Case("mk,kn->mn", gather="k", scatter="n", splittable="m"),
    Case("mk,kn->mn", gather="m", scatter="n"),
    Case("bmk,kn->bnm", gather="b", scatter="m"),
    Case("mk,kn->mn", gather="k", operand="rhs", scatter="m", splittable="n"),
    Case("bmk,bkn->bmn", gather="n", operand="rhs", scatter="b"),
    # Rows that come over some axes and leave over others.
    Case("mk,kn->mn", gather="m", scatter="m"),
]
# (mesh shape, gather axes, scatter axes)
MESHES = [
    ((1, 4), "x", "y"),
    ((4, 1), "x", "y"),
    ((2, 4), "x", "y"),
    ((4, 2), "x", "y"),
    ((3, 2), "y", "x"),
    ((2, 3), "y", "x"),
    ((2, 2, 2), "yz", "x"),
    ((2, 2, 2), "x", "zy"),
    ((2, 2, 2), "zx", "y"),
]


def parameter_id(value: Any) -> str:
    if isinstance(value, Case):
        return str(value)
    shape, gather, scatter = value
    return f"{'x'.join(map(str, shape))} {gather} to {scatter}"


def both(
    mesh_of: MeshOf,
    where: Any,
    case: Case,
    choose: Callable[[str, str], list[Any]] = schedules,
    rights: int = 0,
) -> None:
    shape, gather_axes, scatter_axes = where
    mesh = mesh_of(shape, "xyz"[: len(shape)])
    ng, ns = (math.prod(mesh.shape[a] for a in axes) for axes in (gather_axes, scatter_axes))
    lhs, rhs = case.operands(ng, ns)
    several = [rhs, *(random(rhs.shape, 7 + i) for i in range(rights))]

    def every(lhs: Any, *several: Any) -> Any:
        return {
            str(schedule): ce.all_gather_einsum_reduce_scatter(
                case.spec,
                lhs,
                several,
                gather_axis_name=tuple(gather_axes),
                gather=case.gather,
                scatter_axis_name=tuple(scatter_axes),
                scatter=case.scatter,
                schedule=schedule,
                precision="highest",
            )
            for schedule in choose(case.splittable, case.free)
        }

    got = on_devices(mesh, (*gather_axes, *scatter_axes), every, lhs, *several)
    for i, right in enumerate(several):
        each = {schedule: results[i] for schedule, results in got.items()}
        assert_close(each, case.expected(lhs, right, ng, ns))


def few_schedules(splittable: str, free: str) -> list[Any]:
    """Round either ring, both ways and rolled, and in chunks."""
    return [
        *torus_schedules(splittable, free),
        Schedule("ring", "bidirectional", ring_of="gather"),
        Schedule("ring", "latency", ring_of="gather", rolled=True),
    ]


@pytest.mark.parametrize("where", MESHES, ids=parameter_id)
def test_meshes(mesh_of: MeshOf, where: Any) -> None:
    both(mesh_of, where, CASES[0], few_schedules)


@pytest.mark.parametrize(
    ("case", "where"), sampled(CASES[1:], [MESHES[4], MESHES[7]]), ids=parameter_id
)
def test_labels(mesh_of: MeshOf, where: Any, case: Case) -> None:
    both(mesh_of, where, case, few_schedules)


def test_every_schedule(mesh_of: MeshOf) -> None:
    both(mesh_of, MESHES[2], CASES[0], all_schedules)


@pytest.mark.parametrize(
    ("where", "case"),
    sampled([MESHES[2], MESHES[3], MESHES[6]], [CASES[0], CASES[-1]]),
    ids=parameter_id,
)
def test_a_sequence(mesh_of: MeshOf, where: Any, case: Case) -> None:
    both(mesh_of, where, case, few_schedules, rights=2)


def test_results_of_different_widths(mesh_of: MeshOf) -> None:
    mesh = mesh_of((2, 4), "xy")
    lhs = random((8, 6, 10))
    several = [random((8, 20, n), i) for i, n in enumerate((16, 8, 24))]
    weights = [random((8, 6, n // 4), 7 + i) for i, n in enumerate((16, 8, 24))]

    def by_ours(lhs: Any, *several: Any, schedule: Any) -> Any:
        return ce.all_gather_einsum_reduce_scatter(
            "mk,kn->mn",
            lhs,
            list(several),
            gather_axis_name="x",
            gather="k",
            scatter_axis_name="y",
            scatter="n",
            schedule=schedule,
            precision="highest",
        )

    def every(lhs: Any, weights: Any, *several: Any) -> Any:
        found = {}
        for schedule in all_schedules("m"):

            def loss(lhs: Any, *several: Any, schedule: Any = schedule) -> Any:
                results = by_ours(lhs, *several, schedule=schedule)
                return sum((y * w).sum() for y, w in zip(results, weights, strict=True))

            gradients = jax.grad(loss, argnums=tuple(range(4)))(lhs, *several)
            found[str(schedule)] = (by_ours(lhs, *several, schedule=schedule), gradients)
        return found

    got = on_devices(mesh, ("x", "y"), every, lhs, weights, *several)
    case = CASES[0]
    for i, right in enumerate(several):
        assert_close({s: ys[i] for s, (ys, _) in got.items()}, case.expected(lhs, right, 2, 4))
    reference = got["blocking"][1]
    for i, wanted in enumerate(reference):
        assert_close({s: gradients[i] for s, (_, gradients) in got.items()}, wanted)
