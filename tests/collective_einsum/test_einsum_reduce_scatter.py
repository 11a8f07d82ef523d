"""einsum_reduce_scatter and einsum_all_reduce: every scattered label, ring, torus and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import collective_einsum as ce
from tests.products import sampled

from .oracle import (
    FEW_TORI,
    RINGS,
    TORI,
    Case,
    MeshOf,
    all_schedules,
    assert_close,
    on_devices,
    parameter_id,
    random,
    schedules,
    torus_id,
    torus_schedules,
)

pytestmark = pytest.mark.slow

CASES = [
    Case("mk,kn->mn", scatter="m", splittable="n"),
    Case("mk,kn->mn", scatter="n", splittable="m"),
    Case("bmk,bkn->mbn", scatter="b", splittable="mn"),
]
REDUCED = [
    Case("mk,kn->mn", reduce=True, splittable="m"),
    Case("bmk,bnk->nbm", reduce=True, splittable="bn"),
]


def summed(
    mesh_of: MeshOf,
    torus: Any,
    case: Case,
    choose: Callable[[str, str], list[Any]] = schedules,
) -> None:
    shape, mesh_names, names = torus
    mesh = mesh_of(shape, mesh_names)
    n = math.prod(mesh.shape[name] for name in names)
    lhs, rhs = case.operands(ns=n)
    axis_name = names if len(names) > 1 else names[0]

    def every(lhs: Any, rhs: Any) -> Any:
        return {str(s): one(lhs, rhs, s) for s in choose(case.splittable, case.free)}

    def one(lhs: Any, rhs: Any, schedule: Any) -> Any:
        options: Any = {"axis_name": axis_name, "schedule": schedule, "precision": "highest"}
        if case.reduce:
            return ce.einsum_all_reduce(case.spec, lhs, rhs, **options)
        return ce.einsum_reduce_scatter(case.spec, lhs, rhs, scatter=case.scatter, **options)

    got = on_devices(mesh, names, every, lhs, rhs)
    assert_close(got, case.expected(lhs, rhs, ns=n), dtype=np.float32)
    if case.reduce:
        for schedule, y in got.items():
            assert (y == y[:1]).all(), f"{schedule}: devices differ"


@pytest.mark.parametrize(("n", "case"), sampled(RINGS, [*CASES, REDUCED[0]], 2), ids=str)
def test_ring(mesh_of: MeshOf, n: int, case: Case) -> None:
    summed(mesh_of, ((n,), "x", ("x",)), case)


@pytest.mark.parametrize("torus", TORI, ids=torus_id)
def test_torus(mesh_of: MeshOf, torus: Any) -> None:
    summed(mesh_of, torus, CASES[1], torus_schedules)


@pytest.mark.parametrize(
    ("torus", "case"), sampled(FEW_TORI, [CASES[0], CASES[2], *REDUCED], 2), ids=parameter_id
)
def test_torus_of_other_labels(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    summed(mesh_of, torus, case, torus_schedules)


@pytest.mark.parametrize("case", [CASES[1], REDUCED[0]], ids=str)
@pytest.mark.parametrize("torus", [((7,), "x", ("x",)), ((2, 4), "xy", ("y", "x"))], ids=torus_id)
def test_every_schedule(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    summed(mesh_of, torus, case, all_schedules)


NOTATIONS = [
    Case("...k,kn->...n", scatter="n"),
    Case("mk,kn", scatter="m", splittable="n"),
    Case("...m,n", scatter="n", splittable="m"),
    Case("bbk,kn->bn", scatter="n", splittable="b"),
    Case("mk,kan->mn", scatter="n", splittable="m"),
    Case("k,k->", reduce=True),
    Case("m,m", reduce=True),
]


@pytest.mark.parametrize(
    ("case", "torus"),
    sampled(NOTATIONS, [((3,), "x", ("x",)), ((2, 2), "xy", ("y", "x"))]),
    ids=parameter_id,
)
def test_notation(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    summed(mesh_of, torus, case)


@pytest.mark.parametrize("torus", [((5,), "x", ("x",)), ((2, 4), "xy", ("y", "x"))], ids=torus_id)
def test_a_sequence(mesh_of: MeshOf, torus: Any) -> None:
    shape, mesh_names, names = torus
    mesh = mesh_of(shape, mesh_names)
    n = math.prod(shape)
    case = Case("mk,kn->mn", scatter="m", splittable="n")
    lhs, rhs = case.operands(ns=n)
    # Of another width: each is split into chunks by its own size.
    rights = [rhs, random((n, rhs.shape[1], 4), 7)]

    def every(lhs: Any, *rights: Any) -> Any:
        return {
            str(schedule): ce.einsum_reduce_scatter(
                case.spec, lhs, rights, axis_name=names, scatter=case.scatter, schedule=schedule
            )
            for schedule in schedules(case.splittable, case.free)
        }

    got = on_devices(mesh, names, every, lhs, *rights)
    for i, right in enumerate(rights):
        each = {schedule: results[i] for schedule, results in got.items()}
        assert_close(each, case.expected(lhs, right, ns=n))


def test_size_one_broadcasts_as_in_einsum(mesh_of: MeshOf) -> None:
    lhs, rhs = random((3, 1, 4, 5), 0), random((3, 2, 1, 6), 1)

    def every(lhs: Any, rhs: Any) -> Any:
        return {
            str(schedule): ce.einsum_reduce_scatter(
                "bmk,bkn->bmn", lhs, rhs, axis_name="x", scatter="n", schedule=schedule
            )
            for schedule in schedules("m")
        }

    got = on_devices(mesh_of((3,), "x"), ("x",), every, lhs, rhs)
    terms = np.einsum("dmk,dbn->dbmn", lhs[:, 0], rhs[:, :, 0])
    assert_close(got, np.stack(np.split(terms.sum(axis=0), 3, axis=-1)))


@pytest.mark.parametrize("size", [0, 1, 5, 8, 9, 16])
def test_all_reduce_of_any_size(mesh_of: MeshOf, size: int) -> None:
    # Sizes that 8 devices do not divide, or leave too little of to go both ways.
    lhs, rhs = random((8, 3)), random((8, 3, size), 1)

    def every(lhs: Any, rhs: Any) -> Any:
        return {
            str(schedule): ce.einsum_all_reduce(
                "k,kn->n", lhs, rhs, axis_name="x", schedule=schedule
            )
            for schedule in schedules()
        }

    want = Case("k,kn->n", reduce=True).expected(lhs, rhs, ns=8)
    assert_close(on_devices(mesh_of((8,), "x"), ("x",), every, lhs, rhs), want)
