"""Exporting for symbolic sizes, wherever lax's collectives can be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export, lax
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from .oracle import MeshOf

# Sizes of m, k and n.
SYMBOLIC = pytest.mark.parametrize(
    "sizes", ["4*a, 8, 16", "4*a, b, 16", "8, b, 16", "8, 8, c", "4*a, b, c"]
)
ANY = ("auto", "blocking")


def exported(mesh: Any, run: Any, in_specs: Any, out_specs: Any, shapes: list[str]) -> Any:
    scope = export.SymbolicScope()
    args = [
        jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), jnp.float32)
        for shape in shapes
    ]
    mapped = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return export.export(jax.jit(mapped))(*args)


def check(mesh: Any, run: Callable[..., Any], in_specs: Any, sizes: str, dims: Any) -> None:
    """Exports what gives pairs of arrays, which are to have one shape."""
    names = [each.strip() for each in sizes.split(",")]
    shapes = [", ".join(names[i] for i in dim) for dim in dims]
    found = exported(mesh, run, in_specs, P(), shapes).out_avals
    assert found
    for ours, theirs in zip(found[::2], found[1::2], strict=True):
        assert ours.shape == theirs.shape


@SYMBOLIC
def test_collectives(mesh_of: MeshOf, sizes: str) -> None:
    def run(x: Any, y: Any) -> Any:
        found = []
        for s in ANY:
            found += [
                (ce.all_gather(x, "x", schedule=s), lax.all_gather(x, "x", tiled=True)),
                (ce.reduce_scatter(y, "x", schedule=s), lax.psum_scatter(y, "x", tiled=True)),
                (ce.all_reduce(x, "x", schedule=s), lax.psum(x, "x")),
                (
                    ce.all_to_all(y, "x", 0, 1, schedule=s),
                    lax.all_to_all(y, "x", 0, 1, tiled=True),
                ),
            ]
        return found

    check(mesh_of((4,), "x"), run, (P("x"), P()), sizes, [(0, 1), (0, 1)])


@SYMBOLIC
def test_einsums(mesh_of: MeshOf, sizes: str) -> None:
    def run(x: Any, y: Any, w: Any) -> Any:
        found = []
        for s in ANY:
            options: dict[str, Any] = {"axis_name": "x", "schedule": s}
            found += [
                (
                    ce.all_gather_einsum("mk,kn->mn", x, w, gather="m", **options),
                    lax.all_gather(x, "x", tiled=True) @ w,
                ),
                (
                    ce.einsum_reduce_scatter("mk,kn->mn", y, w, scatter="m", **options),
                    lax.psum_scatter(y @ w, "x", tiled=True),
                ),
                (ce.einsum_all_reduce("mk,kn->mn", y, w, **options), lax.psum(y @ w, "x")),
            ]
        return found

    check(mesh_of((4,), "x"), run, (P("x"), P(), P()), sizes, [(0, 1), (0, 1), (1, 2)])


def test_both_ends_and_a_fold(mesh_of: MeshOf) -> None:
    def run(x: Any, y: Any, w: Any) -> Any:
        del y
        both = ce.all_gather_einsum_reduce_scatter(
            "mk,kn->mn",
            x,
            w,
            gather="m",
            gather_axis_name="x",
            scatter="m",
            scatter_axis_name="y",
        )
        whole = lax.all_gather(x, "x", tiled=True)
        folded = ce.all_gather_fold(
            lambda total, shard, _: total + shard.sum(0), jnp.zeros(x.shape[1:]), x, axis_name="x"
        )
        return [
            (both, lax.psum_scatter(whole @ w, "y", tiled=True)),
            (folded, whole.sum(0)),
        ]

    check(mesh_of((4, 2), "xy"), run, (P("x"), P("x"), P()), "8*a, b, c", [(0, 1), (0, 1), (1, 2)])


@SYMBOLIC
def test_global_einsums(mesh_of: MeshOf, sizes: str) -> None:
    mesh = mesh_of((4,), "x")
    names = [each.strip() for each in sizes.split(",")]
    scope = export.SymbolicScope()
    shapes = [
        export.symbolic_shape(", ".join(dims), scope=scope) for dims in (names[:2], names[1:])
    ]

    def run(x: Any, w: Any) -> Any:
        return ce.einsum("mk,kn->mn", x, w, mesh=mesh, in_specs=(P("x"), P()), out_sharding=P())

    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    program = export.export(jax.jit(run))(*args)
    assert program.out_avals[0].shape == (shapes[0][0], shapes[1][1])


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (
            lambda x, w: ce.all_gather(x, "x", schedule="bidirectional") @ w,
            r"all_gather of shape \(a, b\) .*'bidirectional' .* symbolic; choose 'auto'",
        ),
        *(
            (
                lambda x, w, s=s: ce.all_gather_einsum(
                    "mk,kn->mn", x, w, axis_name="x", gather="m", schedule=s
                ),
                "schedule .*choose 'auto' or 'blocking'",
            )
            for s in ("latency", "chunked", ce.Schedule("chunked", chunks=2, label="k"))
        ),
    ],
)
def test_a_named_schedule_that_cuts_is_refused_in_words(
    mesh_of: MeshOf, run: Any, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        exported(mesh_of((4,), "x"), run, (P("x"), P()), P(), ["4*a, b", "b, c"])
