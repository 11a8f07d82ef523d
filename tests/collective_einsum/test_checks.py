"""Sizes label by label, and the axes that a collective goes over."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from collective_einsum.spec.sizes import axis_names, axis_size, check_sizes, squeeze_broadcasts
from collective_einsum.spec.spec import parse, resolve_gather


def test_sizes_after_a_gather():
    shapes = (2, 3, 4), (16, 5)
    spec = parse("ble,ef->blf", *shapes)
    gather = resolve_gather(spec, "e", *shapes, n=4, axis_name="x")
    assert check_sizes(spec, *shapes, gather) == {"b": 2, "l": 3, "e": 16, "f": 5}


@pytest.mark.parametrize("empty", [0, 1])
def test_size_one_gives_way_to_an_empty_dimension_as_in_jax(empty: int):
    shapes = (0, 3), (empty, 2)
    assert check_sizes(parse("ij,ik->ijk", *shapes), *shapes)["i"] == 0
    assert jnp.einsum("ij,ik->ijk", *map(jnp.ones, shapes)).shape == (0, 3, 2)


def test_a_gathered_shard_of_one_is_not_a_broadcast():
    shapes = (1, 3), (4, 1)
    spec = parse("ki,kj->ij", *shapes)
    gather = resolve_gather(spec, "k", *shapes, n=4, axis_name="x")
    assert squeeze_broadcasts(spec, *shapes, gather) == (spec, (), ())
    squeezed, lhs_dims, rhs_dims = squeeze_broadcasts(spec, *shapes)
    assert (squeezed.formula, lhs_dims, rhs_dims) == ("i,kj->ij", (0,), ())


def test_sizes_that_disagree():
    shapes = (2, 3), (4, 5)
    words = (
        "einsum 'ij,jk->ik': label 'j' is 3 in lhs and 4 in rhs. Locally both must be equal: shard "
        "'j' alike in both operands, or gather='j' if one of them holds a shard of it"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        check_sizes(parse("ij,jk->ik", *shapes), *shapes)
    shapes = (2, 3, 4), (2, 3, 5)
    spec = parse("bij,bik->bjk", *shapes)
    gather = resolve_gather(spec, "j", *shapes, n=2, axis_name="x")
    with pytest.raises(
        ValueError, match=r"label 'b' is 2 in lhs and 6 in rhs \(after the gather of"
    ):
        check_sizes(spec, (2, 3, 4), (6, 3, 5), gather)
    with pytest.raises(ValueError, match="label 'i' stands for sizes 3 and 4 within lhs"):
        check_sizes(parse("ii,ij->j", (3, 4), (3, 5)), (3, 4), (3, 5))
    with pytest.raises(ValueError, match=re.escape("'bij' does not fit the lhs shape (3, 4)")):
        check_sizes(spec, (3, 4), (6, 3, 5))


def test_axis_names():
    assert axis_names("x") == ("x",)
    assert axis_names(("y", "x")) == ("y", "x")
    for bad, words in [
        ((), "axis_name is empty"),
        (("x", "y", "x"), "names an axis twice"),
        (3, "must be a mesh axis name or a tuple of names, got 3"),
        ((("x", "y"), "z"), "must be a mesh axis name or a tuple of names"),
        (None, "got None"),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            axis_names(bad)  # pyright: ignore[reportArgumentType]


def test_axis_size_is_the_product_over_a_tuple(mesh_of):
    sizes = []

    def local(x):
        sizes.extend([axis_size("y"), axis_size(("z", "x")), axis_size(("x", "y", "z"))])
        return x

    mesh = mesh_of((1, 4, 2), ("x", "y", "z"))
    jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x"))).lower(jnp.ones(8))
    assert sizes == [4, 2, 8]


@pytest.mark.parametrize("explicit", [False, True])
def test_axes_that_are_not_manual(mesh_of, explicit: bool):
    mesh = mesh_of((2, 4), ("x", "y"), explicit=explicit)

    def lower(axis, manual):
        def local(x):
            axis_size(axis)
            return x

        mapped = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(), axis_names=manual)
        jax.jit(mapped).lower(jax.ShapeDtypeStruct((8,), jnp.float32))

    words = (
        "axis 'q' is not a manual mesh axis here; call this inside jax.shard_map over a mesh with "
        "that axis; axes in scope: 'x', 'y'"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        lower("q", {"x", "y"})
    words = (
        "axis 'y' is not a manual mesh axis here; add it to shard_map's axis_names, which has "
        "('x',); axes in scope: 'x'"
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        lower(("x", "y"), {"x"})


def test_axes_outside_a_shard_map(mesh_of):
    with pytest.raises(ValueError, match=r"inside jax\.shard_map .*axes in scope: none"):
        axis_size("x")
    with jax.set_mesh(mesh_of((2, 4), ("x", "y"))), pytest.raises(ValueError, match="scope: none"):
        axis_size("x")
