"""The chunked schedule where labels are shorter than its four chunks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from .oracle import MeshOf

pytestmark = pytest.mark.slow

N = 4


def gather(x: Any, w: Any, schedule: Any) -> Any:
    return ce.all_gather_einsum("mk,kn->mn", x, w, axis_name="x", gather="m", schedule=schedule)


def scatter(x: Any, w: Any, schedule: Any) -> Any:
    return ce.einsum_reduce_scatter(
        "mk,kn->mn", x, w, axis_name="x", scatter="m", schedule=schedule
    )


def reduce(x: Any, w: Any, schedule: Any) -> Any:
    return ce.einsum_all_reduce("mk,kn->mn", x, w, axis_name="x", schedule=schedule)


def program(
    mesh_of: MeshOf, run: Callable[..., Any], k: int, n: int, schedule: Any
) -> tuple[Any, Any, Any]:
    """The jitted einsum, and its arguments: x [2 N, k] and w [k, n], both of ones."""
    spec = P("x") if run is gather else P()
    mapped = jax.shard_map(
        lambda x, w: run(x, w, schedule),
        mesh=mesh_of((N,), "x"),
        in_specs=(spec, P()),
        out_specs=P("x") if run is scatter else P(),
        check_vma=False,
    )
    x, w = np.ones((2 * N, k), np.float32), np.ones((k, n), np.float32)
    return jax.jit(mapped), x, w


ALL = pytest.mark.parametrize("run", [gather, scatter, reduce], ids=lambda f: f.__name__)


@ALL
@pytest.mark.parametrize(("k", "n"), [(1, 1), (1, 3), (2, 1), (3, 3), (3, 2), (5, 7)])
def test_by_name_it_is_as_many_chunks_as_there_are(
    mesh_of: MeshOf, run: Callable[..., Any], k: int, n: int
) -> None:
    jitted, x, w = program(mesh_of, run, k, n, "chunked")
    got = jitted(x, w)
    want = np.full((2 * N, n), k if run is gather else N * k, np.float32)
    np.testing.assert_array_equal(got, want)


@ALL
@pytest.mark.parametrize(("k", "n"), [(3, 3), (2, 3), (3, 2), (1, 2), (1, 1)])
@pytest.mark.parametrize("label", [None, "m", "k", "n"])
def test_advice_is_accepted(
    mesh_of: MeshOf, run: Callable[..., Any], k: int, n: int, label: str | None
) -> None:
    def made(schedule: Any) -> str | None:
        jitted, x, w = program(mesh_of, run, k, n, schedule)
        try:
            jitted.lower(x, w)
        except ValueError as error:
            return str(error)
        return None

    words = made(ce.Schedule("chunked", chunks=9, label=label))
    assert words is not None
    advice = re.search(r"choose chunks=(\d) and label='(\w)', or a ring, such as 'latency'", words)
    at_most = re.search(r"'(\w)' has size \d, which makes (\d) chunks at most", words)
    if advice:
        assert made(ce.Schedule("chunked", chunks=int(advice[1]), label=advice[2])) is None
    elif at_most:
        assert made(ce.Schedule("chunked", chunks=int(at_most[2]), label=at_most[1])) is None
    else:
        assert "use a ring, such as 'latency'" in words
        assert made("latency") is None
