"""Einsums, collectives and folds under jax's modes: what they are without."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from tests.products import sampled

from .oracle import Case, MeshOf, hlo, ours, schedules, shard, torus_schedules

CASES = (
    Case("mk,kn->mn", gather="m"),
    Case("mk,kn->mn", gather="k"),
    Case("mk,kn->mn", scatter="m"),
    Case("mk,kn->mn", scatter="n"),
    Case("mk,kn->mn", reduce=True),
)
RINGS = (
    "blocking",
    "bidirectional",
    Schedule("ring", "latency", rolled=True),
    Schedule("ring", "unidirectional", rolled=True),
    "async",
)
MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "x64": lambda: jax.enable_x64(True),
    "debug_nans": lambda: jax.debug_nans(True),
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
}
PLACES = (((4,), "x", ("x",)), ((2, 4), "xy", ("y", "x")))


def run(case: Case, names: tuple[str, ...], schedule: Any, lhs: Any, rhs: Any) -> Any:
    return ours(case, lhs, rhs, names, schedule=schedule)


@pytest.mark.parametrize(("case", "place"), sampled(CASES, PLACES), ids=str)
def test_every_schedule_lowers_under_x64(mesh_of: MeshOf, case: Case, place: Any) -> None:
    shape, axes, names = place
    mesh, n = mesh_of(shape, axes), int(np.prod(shape))
    operands = case.operands(*((n, 1) if case.gather else (1, n)))
    for schedule in (schedules if len(shape) == 1 else torus_schedules)(case.splittable, case.free):
        local = functools.partial(run, case, names, schedule)
        with jax.enable_x64(True):
            text = hlo(mesh, names, local, *operands)
        assert not re.search(r"\dxf64", text), schedule


@pytest.mark.parametrize(("schedule", "place"), sampled(RINGS, PLACES), ids=str)
def test_collectives_and_folds_lower_under_x64(mesh_of: MeshOf, place: Any, schedule: Any) -> None:
    shape, axes, names = place
    mesh, n = mesh_of(shape, axes), int(np.prod(shape))
    x = np.arange(n * n * 6, dtype=np.float32).reshape(n, n, 6)

    def all_of(x: Any) -> Any:
        gathered = ce.all_gather(x, names, axis=0, schedule=schedule)
        return (
            gathered,
            ce.reduce_scatter(gathered, names, scatter_dimension=0, schedule=schedule),
            ce.all_to_all(x, names, 0, 1, schedule=schedule),
            ce.all_reduce(x, names, schedule=schedule),
        )

    def fold(x: Any) -> Any:
        how = "latency" if schedule in ("async", "bidirectional") else schedule
        add = lambda sums, shard, index: sums + shard * index.astype(shard.dtype)  # noqa: E731
        return ce.all_gather_fold(add, jnp.zeros_like(x), x, axis_name=names, schedule=how)

    def both(x: Any) -> Any:
        return all_of(x), fold(x)

    with jax.enable_x64(True):
        assert "f32" in hlo(mesh, names, both, x)


@pytest.mark.parametrize("schedule", RINGS, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_gives_what_it_gives_without(mesh_of: MeshOf, mode: str, schedule: Any) -> None:
    mesh, names, case = mesh_of((4,), "x"), ("x",), CASES[0]
    operands = jax.device_put(case.operands(4, 1), NamedSharding(mesh, P("x")))
    program = jax.jit(shard(mesh, names, functools.partial(run, case, names, schedule)))
    wanted = jax.device_get(program(*operands))
    with MODES[mode]():
        found = jax.device_get(program(*operands))
    np.testing.assert_array_equal(found, wanted)
