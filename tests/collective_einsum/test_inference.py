"""The collectives inferred from shardings, with no device in sight."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collective_einsum.global_arrays import infer_collectives as inference
from collective_einsum.global_arrays.infer_collectives import Axes, Case, Change, Layout, Plan
from collective_einsum.spec.spec import Spec

MESH = {"x": 2, "y": 3, "z": 2}
SIZES = {"b": 24, "m": 48, "k": 96, "n": 192}


def layout(text: str) -> Layout:
    """`"x . yz"` as a layout: one word a dimension."""
    return tuple(() if word == "." else tuple(word) for word in text.split())


def plan(spec: str, lhs: str, rhs: str, out: str, **sizes: int) -> Plan:
    """The plan of an einsum with an explicit output."""
    inputs, result = spec.split("->")
    left, right = inputs.split(",")
    layouts = (layout(lhs), layout(rhs), layout(out))
    parsed = Spec(spec, left, right, result)
    return inference.infer(Case(parsed, SIZES | sizes, (4, 4, 4), MESH, *layouts))


HIDDEN = {
    "nothing to do": (("x .", ". y", "x y"), None, None, None),
    "unsharded": ((". .", ". .", ". ."), None, None, None),
    "1D weight stationary, in": ((". xyz", ". xyz", ". xyz"), ("k", "xyz"), None, None),
    "1D weight stationary, out": ((". xyz", "xyz .", ". xyz"), None, ("n", "xyz"), None),
    "2D weight stationary, in": ((". xyz", "x yz", ". yzx"), ("k", "yz"), ("n", "x"), None),
    "2D weight stationary, out": ((". yzx", "yz x", ". xyz"), ("k", "x"), ("n", "yz"), None),
    "weight gathered": (("xyz .", "xyz .", "xyz ."), ("k", "xyz"), None, None),
    "weight gathered, 2D": (("xy z", "z y", "xy ."), ("n", "y"), None, "z"),
    "all-reduce": ((". xz", "xz .", ". ."), None, None, "xz"),
    "scatter of rows": ((". x", "x .", "x ."), None, ("m", "x"), None),
    "free label": (("x .", ". .", ". ."), ("m", "x"), None, None),
    "contracted label of one": ((". x", ". .", ". ."), ("k", "x"), None, None),
    "minor axis": ((". .", ". yx", ". y"), ("n", "x"), None, None),
}


@pytest.mark.parametrize(("shardings", "gather", "scatter", "reduce"), HIDDEN.values(), ids=HIDDEN)
def test_hidden(
    shardings: tuple[str, str, str],
    gather: tuple[str, str] | None,
    scatter: tuple[str, str] | None,
    reduce: str | None,
) -> None:
    found = plan("mk,kn->mn", *shardings)
    assert found.fused.gather == (gather and (gather[0], tuple(gather[1])))
    assert found.fused.scatter == (scatter and (scatter[0], tuple(scatter[1])))
    assert found.fused.reduce == (reduce and tuple(reduce))
    assert found.lhs == found.rhs == found.out == Change()
    assert not found.scatters
    assert not found.reduce


def test_the_largest_gather_is_hidden() -> None:
    found = plan("mk,kn->mn", "x .", "y .", ". .")
    assert found.fused.gather == ("k", ("y",))
    assert found.lhs == Change(gathers=((0, ("x",)),))
    found = plan("mk,kn->mn", "x .", "y .", ". .", m=1920)
    assert found.fused.gather == ("m", ("x",))
    assert found.rhs == Change(gathers=((0, ("y",)),))


def test_one_label_over_different_axes_gathers_the_smaller_operand() -> None:
    found = plan("mk,kn->mn", ". x", "y .", ". .")
    # rhs, the larger one, stays divided over y; lhs lets go of x and takes its part of y.
    assert found.lhs == Change(gathers=((1, ("x",)),), late=((1, ("y",)),))
    assert found.rhs == Change()
    assert found.fused.reduce == ("y",)
    found = plan("bmk,bkn->bmn", "x . .", "y . .", "x . .", m=1920)
    assert (found.lhs, found.fused.gather) == (Change(), None)
    assert found.rhs == Change(gathers=((0, ("y",)),), late=((0, ("x",)),))


def test_an_operand_divided_further_makes_the_other_follow() -> None:
    found = plan("mk,kn->mn", ". xy", "x .", ". .")
    assert (found.lhs, found.rhs) == (Change(), Change(early=((0, ("y",)),)))
    assert found.fused.reduce == ("x", "y")


def test_result_axes_of_no_operand_are_sliced_before_the_einsum() -> None:
    found = plan("bmk,bkn->bmn", ". . .", ". . .", "x . y")
    assert found.lhs == Change(early=((0, ("x",)),))
    assert found.rhs == Change(early=((0, ("x",)), (2, ("y",))))
    assert found.out == Change()


def test_another_order_of_axes_is_one_permutation() -> None:
    found = plan("mk,kn->mn", ". xyz", "x yz", ". xyz")
    assert found.fused.scatter == ("n", ("x",))
    assert found.out == Change(sorts=((1, ("y", "z", "x"), ("x", "y", "z")),))


def test_several_scatters_and_an_all_reduce() -> None:
    found = plan("mk,kn->mn", ". xyz", "xyz .", "x y")
    assert found.fused.scatter == ("n", ("y",))
    assert (found.scatters, found.reduce, found.reduced) == (((0, ("x",)),), ("z",), ("z",))


def test_an_axis_on_another_label_of_the_result_is_an_all_to_all() -> None:
    found = plan("bmk,bkn->bmn", "x . .", "x . .", ". x .")
    assert found.out == Change(swaps=((("x",), 1, 0),))
    # Both operands shard something else than the result does: the fewest bytes decide.
    found = plan("mk,kn->mn", "x .", ". x", ". .", m=1920)
    assert (found.lhs, found.fused.gather) == (Change(), ("n", ("x",)))
    assert found.out == Change(gathers=((0, ("x",)),))


def test_a_label_that_all_axes_together_do_not_divide() -> None:
    found = plan("bmk,bkn->bmn", "x . .", "x . .", "z . .", b=2)
    assert found.out == Change(gathers=((0, ("x",)),), late=((0, ("z",)),))
    # A sum over z cannot be scattered onto the half of b that x leaves.
    found = plan("bmk,bkn->bmn", "x . z", "x z .", "z . .", b=2)
    assert (found.fused.scatter, found.fused.reduce) == (None, ("z",))


Shards = dict[tuple[int, ...], np.ndarray]
PLACES = list(itertools.product(*map(range, MESH.values())))


def index(place: tuple[int, ...], axes: Axes) -> int:
    """The number of a device along `axes`, the first one major."""
    found = 0
    for axis in axes:
        found = found * MESH[axis] + place[list(MESH).index(axis)]
    return found


def count(axes: Axes) -> int:
    return math.prod(MESH[axis] for axis in axes)


def peers(place: tuple[int, ...], axes: Axes) -> list[tuple[int, ...]]:
    """The devices that differ only along `axes`, in their order there."""
    rest = tuple(axis for axis in MESH if axis not in axes)
    same = [p for p in PLACES if index(p, rest) == index(place, rest)]
    return sorted(same, key=lambda p: index(p, axes))


def sharded(x: np.ndarray, layout: Layout) -> Shards:
    found = dict.fromkeys(PLACES, x)
    for dim, axes in enumerate(layout):
        found = sliced(found, dim, axes)
    return found


def sliced(shards: Shards, dim: int, axes: Axes) -> Shards:
    return {p: np.split(x, count(axes), axis=dim)[index(p, axes)] for p, x in shards.items()}


def gathered(shards: Shards, dim: int, axes: Axes) -> Shards:
    return {p: np.concatenate([shards[q] for q in peers(p, axes)], axis=dim) for p in PLACES}


def sorted_shards(shards: Shards, _: int, have: Axes, want: Axes) -> Shards:
    return {p: shards[peers(p, have)[index(p, want)]] for p in PLACES}


def swapped(shards: Shards, axes: Axes, split: int, join: int) -> Shards:
    def part(p: tuple[int, ...], q: tuple[int, ...]) -> np.ndarray:
        return np.split(shards[q], count(axes), axis=split)[index(p, axes)]

    return {p: np.concatenate([part(p, q) for q in peers(p, axes)], axis=join) for p in PLACES}


STEPS: dict[str, Callable[..., Shards]] = {
    "swaps": swapped,
    "early": sliced,
    "sorts": sorted_shards,
    "gathers": gathered,
    "late": sliced,
    "resorts": sorted_shards,
}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Each axis on one of two dimensions or none, in any order."""
    found: list[list[str]] = [[], [], []]
    for axis in draw(st.permutations(list(MESH))):
        found[draw(st.integers(0, 2))].append(axis)
    return tuple(map(tuple, found[:2]))


@settings(max_examples=200, derandomize=True)
@given(layouts(), layouts())
def test_change_leads_from_one_layout_to_the_other(have: Layout, want: Layout) -> None:
    x = np.arange(12 * 24).reshape(12, 24)
    shards, wanted = sharded(x, have), sharded(x, want)
    found = inference.change(have, want)
    for field, step in STEPS.items():
        for arguments in getattr(found, field):
            shards = step(shards, *arguments)
    for place in PLACES:
        np.testing.assert_array_equal(shards[place], wanted[place])


def test_no_change_is_empty() -> None:
    assert inference.change(layout("xy . z"), layout("xy . z")) == Change()
