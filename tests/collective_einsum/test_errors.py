"""What the public functions refuse while tracing, and in which words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Quantized, Schedule

from .oracle import MeshOf

x, w = jnp.ones((4, 6)), jnp.ones((24, 10))
X: Any = {"axis_name": "x"}


def refused(mesh_of: MeshOf, function: Callable[[], Any], words: str) -> None:
    """The function raises ValueError with these words in a shard_map over x=4 and y=2."""

    def run(_: Any) -> Any:
        with pytest.raises(
            ValueError, match=f"(?s){re.escape(words).replace(re.escape('...'), '.*')}"
        ):
            function()
        return jnp.zeros(())

    mesh = mesh_of((4, 2), "xy")
    jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P())).trace(0.0)


def gathers(spec: str, lhs: Any, rhs: Any, gather: str = "k", **options: Any) -> Callable[[], Any]:
    return lambda: ce.all_gather_einsum(spec, lhs, rhs, gather=gather, **(X | options))


def scatters(spec: str, lhs: Any, rhs: Any, scatter: str, **options: Any) -> Callable[[], Any]:
    return lambda: ce.einsum_reduce_scatter(spec, lhs, rhs, scatter=scatter, **(X | options))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        # Specs and labels.
        (gathers("mk,kn,no->mo", x, w), "names 3 operand(s)"),
        (gathers("mk,kn->mn", x, w[0]), "'kn' asks for 2 dimensions, but rhs has shape (10,)"),
        (gathers("mk,kn->mn", x, w, "z"), "gather='z' is not a label of einsum 'mk,kn->mn'"),
        (gathers("mk,kn->mn", x, w, "mk"), "choose one of 'mkn'"),
        (gathers("...k,kn->...n", x, w, "."), "needs a letter of its own"),
        (gathers("kk,kn->kn", x[:, :4], w), "repeats 'k' within one operand"),
        (
            gathers("mk,kn->mn", x, w[:6]),
            "both operands hold 6 of 'k'... pass one operand with all 24",
        ),
        (gathers("mk,kn->mn", x, w[:9]), "lhs holds 6 of 'k' and rhs holds 9... must hold 4 times"),
        (
            gathers("mk,kn->mn", x, w[:, :0], "n"),
            "rhs has size 0 there, so there is nothing to gather",
        ),
        (gathers("mk,bn->bn", x, w, "m"), "sums over 'm' in lhs alone... all_reduce"),
        (scatters("mk,kn->mn", x, w[:6], "k"), "sums over 'k', so the output has nothing of it"),
        (scatters("mk,kn->mn", x, w[:6], "n"), "4 does not divide the size 10 of 'n'... 8 or 12"),
        (scatters("mk,kn->mn", x, w, "m"), "label 'k' is 6 in lhs and 24 in rhs"),
        # Axes.
        (gathers("mk,kn->mn", x, w, axis_name="z"), "axis 'z' is not a manual mesh axis here"),
        (gathers("mk,kn->mn", x, w, axis_name=()), "axis_name is empty"),
        (gathers("mk,kn->mn", x, w, axis_name=("x", "x")), "names an axis twice"),
        (gathers("mk,kn->mn", x, w, axis_name=0), "axis_name must be a mesh axis name"),
        (lambda: ce.einsum_all_reduce("mk,kn->mn", x, w[:6], axis_name=()), "axis_name is empty"),
        # Dtypes.
        (gathers("mk,kn->mn", x > 0, w), "lhs is bool; cast it"),
        (
            gathers("mk,kn->mn", x.astype(jnp.int8), w.astype(jnp.int8)),
            "integer overflow: 24 products",
        ),
        (scatters("mk,kn->mn", x.astype(jnp.int8), w[:6].astype(jnp.int8), "m"), "24 products"),
        (gathers("mk,kn->mn", x, w, wire_dtype="int8"), "wire_dtype=int8 cannot carry float32"),
        (
            gathers("mk,kn->mn", x, w, accumulator_dtype="int32"),
            "accumulator_dtype=int32 cannot hold",
        ),
        (
            gathers("mk,kn->mn", x, w, preferred_element_type="int32"),
            "preferred_element_type=int32",
        ),
        (gathers("mk,kn->mn", x, []), "rhs is an empty sequence"),
        # Quantized operands.
        (
            gathers("mk,kn->mn", x, Quantized(w.astype(jnp.int8), jnp.ones((24, 1)), "float32")),
            "has size 24 along 'k', which is summed over... quantize(x, axis=(0,))",
        ),
        (
            gathers("mk,kn->mn", x, Quantized(w.astype(jnp.int8), jnp.ones((1, 3)), "float32")),
            "does not fit 'kn'",
        ),
    ],
)
def test_einsums(mesh_of: MeshOf, function: Any, words: str) -> None:
    refused(mesh_of, function, words)


@pytest.mark.parametrize(
    ("gather", "scatter", "axes", "words"),
    [
        ("k", "n", ("x", "x"), "share the axis 'x'"),
        ("k", "n", (("x", "y"), "y"), "share the axis 'y'"),
    ],
)
def test_both_ends(mesh_of: MeshOf, gather: str, scatter: str, axes: Any, words: str) -> None:
    def function() -> Any:
        return ce.all_gather_einsum_reduce_scatter(
            "mk,kn->mn",
            x,
            w,
            gather_axis_name=axes[0],
            gather=gather,
            scatter_axis_name=axes[1],
            scatter=scatter,
        )

    refused(mesh_of, function, words)


def cut(chunks: Any, label: str | None, direction: Any = "latency") -> dict[str, Any]:
    return {"schedule": Schedule("chunked", direction, chunks=chunks, label=label)}


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (gathers("mk,kn->mn", x, w, schedule="fast"), "schedule='fast' is unknown; choose 'auto'"),
        (gathers("mk,kn->mn", x, w, schedule=None), "schedule=None is unknown"),
        (
            gathers("mk,kn->mn", x[:, :1], w[:4], schedule="bidirectional"),
            "gather='k' leaves 1 of 'k' to each of 4 devices... cannot be halved... 'latency'",
        ),
        (
            scatters("mk,kn->mn", x, w[:6], "m", schedule="bidirectional"),
            "scatter='m' leaves 1 of 'm' to each of 4 devices",
        ),
        (
            gathers("mk,kn->mn", x, w, **cut(2, "z")),
            "it has no label 'z' to split; choose label='m'",
        ),
        (
            gathers("mk,kn->mn", x, w, **cut(2, "k")),
            "'k' is gathered, and its shards are not split",
        ),
        (
            gathers("mk,kn->mn", x, w, **cut(2, "k", "async")),
            "'k' is gathered, and its shards are not split",
        ),
        (
            gathers("km,kn->mn", x, w[:4], "m", **cut(2, "m")),
            "'m' is gathered, and its shards are not split; choose label='k'... or direction='async'",
        ),
        (
            gathers("km,kn->mn", x, w[:4], "m", **cut(7, "m", "async")),
            "the shards of 'm' have size 6, which makes 6 chunks at most",
        ),
        (
            gathers("mk,kn->mn", x, w, **cut((1, 4), "m")),
            "'m' has size 4, of which no 5 parts can be made for (1, 4)",
        ),
        (gathers("mk,kn->mn", x, w, **cut(2, "n")), "'n' is not in the gathered operand 'mk'"),
        (gathers("mk,kn->mn", x, w, **cut(5, "m")), "'m' has size 4, which makes 4 chunks at most"),
        (
            gathers("k,kn->n", x[0], w, **cut(2, None)),
            "no label is given to split into 2 chunks; use a ring",
        ),
        (gathers("k,kn->n", x[0], w, schedule="chunked"), "no label is given to split"),
        (
            scatters("mk,kn->mn", x, w[:6], "m", **cut(2, "m")),
            "'m' is scattered... choose label='n'",
        ),
        (scatters("mk,kn->mn", x, w[:6], "m", **cut(2, "k")), "'k' is summed over, so each chunk"),
        (
            lambda: ce.einsum_all_reduce("mk,kn->mn", x, w[:6], axis_name="x", **cut(2, "k")),
            "'k' is summed over, so each chunk would send the whole result",
        ),
        (lambda: ce.all_gather(x, "x", schedule="chunked"), "chunks"),
        (
            lambda: ce.all_gather(x[:1], "x", schedule="bidirectional"),
            "all_gather of shape (1, 6) over axis 'x' of size 4... half a shard each way",
        ),
        (
            lambda: ce.reduce_scatter(x, "x", schedule="bidirectional"),
            "reduce_scatter of shape (4, 6) over axis 'x' of size 4... has 1 of dimension 0",
        ),
    ],
)
def test_a_schedule_that_cannot_serve_is_refused(
    mesh_of: MeshOf, function: Any, words: str
) -> None:
    refused(mesh_of, function, words)


def test_a_ring_of_one_serves_any_direction(mesh_of: MeshOf) -> None:
    def run(x: Any) -> Any:
        return ce.all_gather_einsum(
            "mk,kn->mn", x[:, :1], x[:1], axis_name="x", gather="k", schedule="bidirectional"
        )

    program = jax.shard_map(run, mesh=mesh_of((1,), "x"), in_specs=P(), out_specs=P("x"))
    np.testing.assert_array_equal(program(x), jnp.ones((4, 6)))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: ce.all_gather(x, "z"), "axis 'z' is not a manual mesh axis here"),
        (lambda: ce.all_gather(x, "x", axis=2), "there is no dimension 2 among 2"),
        (
            lambda: ce.all_gather(x[:0], "x"),
            "dimension 0 has size 0, so there is nothing to gather",
        ),
        (
            lambda: ce.reduce_scatter(x, "x", scatter_dimension=1),
            "4 does not divide dimension 1, of size 6; pad it to 8",
        ),
        (lambda: ce.all_to_all(x, "x", 1, 0), "4 does not divide dimension 1"),
        (lambda: ce.all_to_all(x, "x", 0, -3), "there is no dimension -3 among 2"),
        (lambda: ce.all_reduce(x > 0, "x"), "dtype bool is not numeric; cast it first"),
        (
            lambda: ce.all_reduce(x, "x", schedule=Schedule(wire_dtype="int8")),
            "wire_dtype=int8 cannot carry float32",
        ),
        (lambda: ce.all_reduce(x, "x", schedule="fast"), "schedule='fast' is unknown"),
    ],
)
def test_collectives(mesh_of: MeshOf, function: Any, words: str) -> None:
    refused(mesh_of, function, words)


def test_outside_of_shard_map() -> None:
    with pytest.raises(
        ValueError, match=r"axis 'x' is not a manual mesh axis .* axes in scope: none"
    ):
        gathers("mk,kn->mn", x, w)()
    with pytest.raises(ValueError, match="axis 'x' is not a manual mesh axis"):
        jax.vmap(lambda row: ce.all_reduce(row, "x"), axis_name="x")(x)
    with pytest.raises(ValueError, match="axis 'x' is not a manual mesh axis"):
        jax.vmap(lambda row: gathers("k,kn->n", row, w)(), axis_name="x")(x)
