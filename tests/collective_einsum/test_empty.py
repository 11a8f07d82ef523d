"""Sizes of nothing and of one, and rings of one device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from .oracle import MeshOf

CHIPS = (ce.TPU_V4, ce.TPU_V4.under_options(), ce.TPU_V5E, ce.H100)
SIZES = ((0, 3, 5), (3, 0, 5), (3, 5, 0), (0, 0, 4), (0, 0, 0), (1, 1, 1), (1, 4, 1), (4, 1, 4))
NAMED = ("auto", "blocking", "unidirectional", "latency", "chunked", "async")


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("end", ["gather", "scatter", "reduce", "both"])
def test_a_schedule_is_chosen(end: str, sizes: tuple[int, int, int], n: int) -> None:
    m, k, e = sizes
    ends: dict[str, Any] = {
        "gather": {"gather": "m", "axis_name": "x"},
        "scatter": {"scatter": "m", "axis_name": "x"},
        "reduce": {"axis_name": "x"},
        "both": {
            "gather": "m",
            "scatter": "m",
            "gather_axis_name": "x",
            "scatter_axis_name": "y",
        },
    }[end]
    if end in ("gather", "both") and not m:
        # There is nothing to gather: refused in words, as by the einsum.
        with pytest.raises(ValueError, match="size 0 there, so there is nothing to gather"):
            ce.choose_schedule("mk,kn->mn", *shapes(m, k, e), axis_size={"x": n, "y": n}, **ends)
        return
    for chip in CHIPS:
        found = ce.choose_schedule(
            "mk,kn->mn", *shapes(m * n, k, e), axis_size={"x": n, "y": n}, chip=chip, **ends
        )
        assert found.rows[0].seconds >= 0
        assert str(found.schedule) in str(found)
        assert found.reason
        if 0 in sizes or n == 1:
            assert found.schedule == ce.Schedule("blocking")


def shapes(m: int, k: int, n: int) -> tuple[Any, Any]:
    return jax.ShapeDtypeStruct((m, k), jnp.bfloat16), jax.ShapeDtypeStruct((k, n), jnp.bfloat16)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_einsums(mesh_of: MeshOf, sizes: tuple[int, int, int], n: int) -> None:
    m, k, e = sizes
    lhs, rhs = np.ones((n, n * m, k), np.float32), np.ones((n, k, e), np.float32)

    def run(x: Any, w: Any, used: Any) -> Any:
        x, w = x[0], w[0]
        found = {}
        for schedule in NAMED:
            found[f"scatter {schedule}"] = ce.einsum_reduce_scatter(
                "mk,kn->mn", x, w, axis_name="x", scatter="m", schedule=schedule
            )
            found[f"reduce {schedule}"] = ce.einsum_all_reduce(
                "mk,kn->mn", x, w, axis_name="x", schedule=schedule
            )
            if m:
                found[f"gather {schedule}"] = ce.all_gather_einsum(
                    "mk,kn->mn", x[:m], w, axis_name="x", gather="m", schedule=schedule
                )
        # XLA wants something that the devices make use of.
        return jax.tree.map(lambda y: y[None] + used, found)

    mapped = jax.shard_map(
        run,
        mesh=mesh_of((n,), "x"),
        in_specs=(P("x"), P("x"), P()),
        out_specs=P("x"),
        check_vma=False,
    )
    got = jax.jit(mapped)(lhs, rhs, jnp.float32(0))
    assert len(got) == (3 if m else 2) * len(NAMED)
    for name, y in got.items():
        whole = (n * m, e) if not name.startswith("scatter") else (m, e)
        value = k * (1 if name.startswith("gather") else n)
        np.testing.assert_array_equal(y, np.full((n, *whole), value, np.float32), err_msg=name)


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (4, 1), (4, 4, 0), (0,), (4,)], ids=str)
def test_collectives(mesh_of: MeshOf, shape: tuple[int, ...], n: int) -> None:
    whole = np.arange(n * np.prod(shape), dtype=np.float32).reshape(n, *shape)
    last = len(shape) - 1

    def run(x: Any, used: Any) -> Any:
        found = {}
        for schedule in ("auto", "blocking", "unidirectional", "latency", "async"):
            found[f"scatter {schedule}"] = ce.reduce_scatter(x[0], "x", schedule=schedule)
            found[f"reduce {schedule}"] = ce.all_reduce(x[0], "x", schedule=schedule)
            found[f"swap {schedule}"] = ce.all_to_all(x[0], "x", 0, last, schedule=schedule)
            if shape[0]:
                found[f"gather {schedule}"] = ce.all_gather(x[0], "x", schedule=schedule)
        # XLA wants something that the devices make use of.
        return jax.tree.map(lambda y: y[None] + used, found)

    mapped = jax.shard_map(
        run, mesh=mesh_of((n,), "x"), in_specs=(P("x"), P()), out_specs=P("x"), check_vma=False
    )
    blocks = [np.split(x, n) for x in whole]
    wants = {
        "scatter": np.stack(np.split(whole.sum(0), n)),
        "reduce": np.stack([whole.sum(0)] * n),
        "gather": np.stack([np.concatenate(list(whole))] * n),
        "swap": np.stack(
            [np.concatenate([blocks[j][i] for j in range(n)], axis=last) for i in range(n)]
        ),
    }
    for name, got in jax.jit(mapped)(whole, jnp.float32(0)).items():
        np.testing.assert_array_equal(got, wants[name.split()[0]], err_msg=name)
