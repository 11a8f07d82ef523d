"""all_gather_einsum: every role of the gathered label, ring length, torus and schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
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
    hlo,
    on_devices,
    parameter_id,
    random,
    schedules,
    torus_id,
    torus_schedules,
)

CASES = [
    Case("mk,kn->mn", "m", "lhs", splittable="k"),
    Case("mk,kn->mn", "k", "lhs", splittable="m"),
    Case("bmk,bkn->mbn", "b", "lhs", splittable="mk"),
    Case("mk,kn->nm", "k", "rhs", splittable="n"),
    Case("mk,kn->mn", "n", "rhs", splittable="k"),
    Case("bkm,bnk->bmn", "b", "rhs", splittable="n"),
    Case("bhk,bmkn->bmhn", "k", "rhs", splittable="m"),
]


def gathered(
    mesh_of: MeshOf,
    torus: Any,
    case: Case,
    choose: Callable[[str, str], list[Any]] = schedules,
) -> None:
    shape, mesh_names, names = torus
    mesh = mesh_of(shape, mesh_names)
    n = math.prod(mesh.shape[name] for name in names)
    lhs, rhs = case.operands(n)

    def every(lhs: Any, rhs: Any) -> Any:
        return {
            str(schedule): ce.all_gather_einsum(
                case.spec,
                lhs,
                rhs,
                axis_name=names if len(names) > 1 else names[0],
                gather=case.gather,
                schedule=schedule,
                precision="highest",
            )
            for schedule in choose(case.splittable, case.free)
        }

    assert_close(on_devices(mesh, names, every, lhs, rhs), case.expected(lhs, rhs, n))


@pytest.mark.parametrize(("n", "case"), sampled(RINGS, CASES[:3], 2), ids=str)
def test_ring(mesh_of: MeshOf, n: int, case: Case) -> None:
    gathered(mesh_of, ((n,), "x", ("x",)), case)


@pytest.mark.parametrize(("case", "n"), sampled(CASES[3:], [3, 4]), ids=str)
def test_ring_of_rhs(mesh_of: MeshOf, n: int, case: Case) -> None:
    gathered(mesh_of, ((n,), "x", ("x",)), case)


@pytest.mark.slow
@pytest.mark.parametrize("torus", TORI, ids=torus_id)
def test_torus(mesh_of: MeshOf, torus: Any) -> None:
    gathered(mesh_of, torus, CASES[1], torus_schedules)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("torus", "case"), sampled(FEW_TORI, [CASES[0], CASES[2]]), ids=parameter_id
)
def test_torus_of_other_labels(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    gathered(mesh_of, torus, case, torus_schedules)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[:2], ids=str)
@pytest.mark.parametrize("torus", [((7,), "x", ("x",)), TORI[1]], ids=torus_id)
def test_every_schedule(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    gathered(mesh_of, torus, case, all_schedules)


NOTATIONS = [
    Case("...k,kn->...n", "k", splittable=""),
    Case("m...,...n->...nm", "m", splittable=""),
    Case("mk,kn", "k", splittable="m"),
    Case("kn,m", "n", splittable="k"),
    Case("...m,n", "m", splittable=""),
    # Diagonals, and labels that are summed in one operand.
    Case("bbk,kn->bn", "k", splittable="b"),
    Case("mk,kan->mn", "k", splittable="m"),
    Case("amk,kn->mn", "k", splittable="m"),
    Case("k,k->", "k", splittable=""),
]


@pytest.mark.parametrize(
    ("case", "torus"),
    sampled(NOTATIONS, [((3,), "x", ("x",)), ((2, 2), "xy", ("y", "x"))]),
    ids=parameter_id,
)
def test_notation(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    gathered(mesh_of, torus, case, lambda splittable, free: ["auto", *schedules(splittable, free)])


def test_size_one_broadcasts_as_in_einsum(mesh_of: MeshOf) -> None:
    lhs, rhs = random((3, 1, 4, 5), 0), random((3, 2, 15, 1), 1)

    def every(lhs: Any, rhs: Any) -> Any:
        return {
            str(schedule): ce.all_gather_einsum(
                "bmk,bkn->bmn", lhs, rhs, axis_name="x", gather="k", schedule=schedule
            )
            for schedule in schedules("m")
        }

    whole = np.concatenate(list(lhs), axis=-1)
    want = np.stack([np.einsum("bmk,bkn->bmn", np.broadcast_to(whole, (2, 4, 15)), w) for w in rhs])
    assert_close(on_devices(mesh_of((3,), "x"), ("x",), every, lhs, rhs), want)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
@pytest.mark.parametrize("torus", [((5,), "x", ("x",)), ((2, 4), "xy", ("y", "x"))], ids=torus_id)
def test_a_sequence_shares_one_gather(mesh_of: MeshOf, torus: Any, case: Case) -> None:
    shape, mesh_names, names = torus
    mesh = mesh_of(shape, mesh_names)
    n = math.prod(shape)
    lhs, first = case.operands(n)
    rights = [first, random((*first.shape[:-1], 2), 7)]

    def every(lhs: Any, *rights: Any) -> Any:
        return {
            str(schedule): ce.all_gather_einsum(
                case.spec, lhs, rights, axis_name=names, gather=case.gather, schedule=schedule
            )
            for schedule in schedules(case.splittable, case.free)
        }

    got = on_devices(mesh, names, every, lhs, *rights)
    for i, right in enumerate(rights):
        assert all(isinstance(each, list) for each in got.values())
        each = {schedule: results[i] for schedule, results in got.items()}
        assert_close(each, case.expected(lhs, right, n), dtype=np.float32)

    def permutes(count: int) -> int:
        def bidirectional(lhs: Any, *rights: Any) -> Any:
            return ce.all_gather_einsum(
                case.spec,
                lhs,
                rights[:count],
                axis_name=names,
                gather=case.gather,
                schedule="bidirectional",
            )

        return hlo(mesh, names, bidirectional, lhs, *rights).count("collective_permute")

    assert permutes(2) == permutes(1) > 0


def test_a_sequence_that_cannot_share_still_works(mesh_of: MeshOf) -> None:
    # The rhs are gathered, each by itself, or they differ in the dtype of the result.
    lhs, rights = random((4, 3, 8)), [random((4, 2, 5), 1), random((4, 2, 6), 2)]

    def weights(lhs: Any, *rights: Any) -> Any:
        return ce.all_gather_einsum(
            "mk,kn->mn", lhs, rights, axis_name="x", gather="k", schedule="latency"
        )

    mesh = mesh_of((4,), "x")
    case = Case("mk,kn->mn", "k", "rhs")
    for y, right in zip(on_devices(mesh, ("x",), weights, lhs, *rights), rights, strict=True):
        assert_close({"latency": y}, case.expected(lhs, right, 4))
    lhs, rights = random((4, 3, 2)), [random((4, 8, 5), 1), random((4, 8, 5), 1, np.complex64)]
    case = Case("mk,kn->mn", "k", "lhs")
    with jax.numpy_dtype_promotion("standard"):
        found = on_devices(mesh, ("x",), weights, lhs, *rights)
    for y, right in zip(found, rights, strict=True):
        assert_close({"latency": y}, case.expected(lhs, right, 4), dtype=right.dtype)
