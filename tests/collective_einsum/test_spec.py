"""Reading an einsum, and what a gather or a scatter of one of its labels means."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collective_einsum.spec.sizes import check_sizes, squeeze_broadcasts
from collective_einsum.spec.spec import (
    Gather,
    Scatter,
    Spec,
    check_both_ends,
    parse,
    resolve_gather,
    resolve_scatter,
)

# Distinct sizes, so that a label in the wrong place shows in the shape.
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "B": 6}
ELLIPSIS_SIZES = (7, 2)


@st.composite
def einsums(draw: st.DrawFn) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """An einsum that numpy takes too, with `...`, broadcasting, diagonals and implicit outputs."""
    terms, shapes, ellipsis = [], [], False
    for _ in range(2):
        letters = draw(st.lists(st.sampled_from(sorted(SIZES)), max_size=3))
        shape = [SIZES[letter] for letter in letters]
        if draw(st.booleans()):
            ellipsis = True
            rank = draw(st.integers(0, len(ELLIPSIS_SIZES)))
            dims = [draw(st.sampled_from([1, s])) for s in ELLIPSIS_SIZES[2 - rank :]]
            at = draw(st.integers(0, len(letters)))
            shape[at:at] = dims
            letters.insert(at, "...")
        terms.append("".join(letters))
        shapes.append(tuple(shape))
    text = ",".join(terms)
    if draw(st.booleans()):
        used = sorted(set(text) - set(".,"))
        out = draw(st.lists(st.sampled_from(used), unique=True)) if used else []
        if ellipsis:
            out.insert(draw(st.integers(0, len(out))), "...")
        text += draw(st.sampled_from(["->", " -> "])) + "".join(out)
    return text, shapes[0], shapes[1]


def arrays(*shapes: tuple[int, ...]) -> list[np.ndarray]:
    """Small integers in float64: every sum is exact, whatever its order."""
    return [np.arange(math.prod(s), dtype=np.float64).reshape(s) % 7 - 3 for s in shapes]


@given(einsums())
def test_parse_agrees_with_numpy_and_jax(case: tuple[str, tuple[int, ...], tuple[int, ...]]):
    text, shapes = case[0], case[1:]
    spec = parse(text, *shapes)
    lhs, rhs = arrays(*shapes)
    expected = np.einsum(text, lhs, rhs)
    np.testing.assert_array_equal(np.einsum(spec.formula, lhs, rhs), expected)
    sizes = check_sizes(spec, *shapes)
    assert tuple(sizes[label] for label in spec.out) == expected.shape
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    assert jax.eval_shape(lambda a, b: jnp.einsum(text, a, b), *structs).shape == expected.shape


@given(einsums())
def test_squeezing_broadcasts_changes_nothing(case: tuple[str, tuple[int, ...], tuple[int, ...]]):
    text, shapes = case[0], case[1:]
    spec = parse(text, *shapes)
    lhs, rhs = arrays(*shapes)
    squeezed, lhs_dims, rhs_dims = squeeze_broadcasts(spec, *shapes)
    small_lhs, small_rhs = lhs.squeeze(lhs_dims), rhs.squeeze(rhs_dims)
    result = np.einsum(squeezed.formula, small_lhs, small_rhs)
    np.testing.assert_array_equal(result, np.einsum(text, lhs, rhs))
    by_label: dict[str, set[int]] = {}
    for labels, array in ((squeezed.lhs, small_lhs), (squeezed.rhs, small_rhs)):
        for label, size in zip(labels, array.shape, strict=True):
            by_label.setdefault(label, set()).add(size)
    assert all(len(sizes) == 1 for sizes in by_label.values())


@given(einsums())
def test_every_label_has_the_role_its_places_give_it(
    case: tuple[str, tuple[int, ...], tuple[int, ...]],
):
    text, lhs_shape, rhs_shape = case
    spec = parse(text, lhs_shape, rhs_shape)
    for label in spec.labels:
        role = spec.role(label)
        assert (role in ("contracting", "batch")) == (label in spec.lhs and label in spec.rhs)
        assert role.startswith("lhs") == (label not in spec.rhs)
        assert (role in ("contracting", "lhs_summed", "rhs_summed")) == (
            label in spec.summed_labels
        )
        mirrored = {"lhs": "rhs", "rhs": "lhs"}.get(role[:3], role[:3]) + role[3:]
        assert spec.swapped().role(label) == mirrored


def test_a_spec_is_a_value():
    spec = parse("...i, ij", (2, 3, 4), (4, 5))
    batch = spec.lhs[:-1]
    assert spec.formula == f"{batch}i,ij->{batch}j"
    assert len(batch) == 2
    assert spec.text == "...i, ij"
    assert str(spec) == f"'...i, ij' (that is, {spec.formula!r})"
    assert str(parse("ij,jk->ik", (2, 3), (3, 4))) == "'ij,jk->ik'"
    assert hash(spec) == hash(dataclasses.replace(spec))
    assert spec.swapped() == Spec(spec.text, "ij", spec.lhs, spec.out)


@pytest.mark.parametrize(
    ("text", "shapes", "formula"),
    [
        ("ij,jk", ((2, 3), (3, 4)), "ij,jk->ik"),
        ("kj,ji", ((2, 3), (3, 4)), "kj,ji->ik"),
        ("bA,bB", ((2, 3), (2, 4)), "bA,bB->AB"),
        ("ii,ij->j", ((3, 3), (3, 5)), "ii,ij->j"),
        ("i,i", ((3,), (3,)), "i,i->"),
        ("\u00e5\u4eaci,i\u00e6", ((3, 2, 4), (4, 5)), "\u00e5\u4eaci,i\u00e6->\u00e5\u00e6\u4eac"),
        (" b l e , e f -> b l f ", ((1, 2, 3), (3, 4)), "ble,ef->blf"),
        ("...,...", ((), ()), ",->"),
    ],
)
def test_formulas(text: str, shapes: tuple[tuple[int, ...], ...], formula: str):
    assert parse(text, *shapes).formula == formula


@pytest.mark.parametrize(
    ("text", "shapes", "words"),
    [
        (("ij", "jk"), ((2, 3), (3, 4)), "must be a string"),
        ("ij->ij", ((2, 3), (3, 4)), "names 1 operand(s); a collective einsum takes exactly two"),
        ("ij,jk,kl->il", ((2, 3), (3, 4)), "names 3 operand(s)"),
        (
            "ij,jk->ik",
            ((2, 3, 4), (3, 4)),
            "'ij' asks for 2 dimensions, but lhs has shape (2, 3, 4)",
        ),
        ("ij,jk->ik", ((2, 3), (3,)), "'jk' asks for 2 dimensions, but rhs has shape (3,)"),
        (
            "...ij,jk",
            ((2,), (3, 4)),
            "'...ij' asks for 2 dimensions or more, but lhs has shape (2,)",
        ),
        ("ij,jk", ((5, 2, 3), (3, 4)), "write '...' for dimensions without a label"),
        ("i..j,jk", ((2, 3), (3, 4)), "'...' may stand once in lhs 'i..j'"),
        ("ij,......k", ((2, 3), (3, 4)), "'...' may stand once in rhs '......k'"),
        ("ij,jk=>ik", ((2, 3), (3, 4)), "write the output once, after '->'"),
        ("ij,jk->ik->ki", ((2, 3), (3, 4)), "'->'"),
        ("ij,jk->iik", ((2, 3), (3, 4)), "'i' appeared more than once in the output"),
        ("ij,jk->iz", ((2, 3), (3, 4)), "'z' did not appear in the input"),
        ("ij,jk->i.k", ((2, 3), (3, 4)), "'.' did not appear in the input"),
    ],
)
def test_what_cannot_be_read(text: str, shapes: tuple[tuple[int, ...], ...], words: str):
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        parse(text, *shapes)
    assert str(text) in str(error.value) or repr(text) in str(error.value)


def test_a_role_of_an_unknown_label():
    with pytest.raises(ValueError, match="'z' is in no operand of einsum 'ij,jk->ik'"):
        parse("ij,jk->ik", (2, 3), (3, 4)).role("z")


BLF = ("ble,ef->blf", (2, 3, 4), (16, 5))


@pytest.mark.parametrize(
    ("case", "label", "n", "expected"),
    [
        (BLF, "e", 4, Gather("e", "lhs", 4, 4, 16, 2, 0, None)),
        (("ble,ef->blf", (2, 3, 16), (4, 5)), "e", 4, Gather("e", "rhs", 4, 4, 16, 2, 0, None)),
        (("ble,ef->blf", (2, 3, 4), (4, 5)), "f", 4, Gather("f", "rhs", 4, 5, 20, None, 1, 2)),
        (("ble,ef->blf", (2, 3, 4), (4, 5)), "b", 3, Gather("b", "lhs", 3, 2, 6, 0, None, 0)),
        (("bi,bj->bij", (1, 2), (4, 3)), "b", 4, Gather("b", "lhs", 4, 1, 4, 0, 0, 0)),
        (("bi,bj->bij", (8, 2), (2, 3)), "b", 4, Gather("b", "rhs", 4, 2, 8, 0, 0, 0)),
        (("bi,j->j", (8, 2), (3,)), "b", 2, Gather("b", "lhs", 2, 8, 16, 0, None, None)),
        (("ij,jk->ik", (2, 3), (3, 4)), "j", 1, Gather("j", "lhs", 1, 3, 3, 1, 0, None)),
        (("ii,ij->j", (3, 3), (3, 5)), "j", 2, Gather("j", "rhs", 2, 5, 10, None, 1, 0)),
        (("...e,ef", (2, 3, 4), (4, 5)), "f", 2, Gather("f", "rhs", 2, 5, 10, None, 1, 2)),
    ],
)
def test_a_gather_moves_the_operand_that_holds_a_shard(
    case: Any, label: str, n: int, expected: Gather
):
    text, shapes = case[0], case[1:]
    spec = parse(text, *shapes)
    gather = resolve_gather(spec, label, *shapes, n=n, axis_name="x")
    assert gather == expected
    assert check_sizes(spec, shapes[0], shapes[1], gather)[label] == expected.full


@pytest.mark.parametrize(
    ("case", "label", "words"),
    [
        (BLF, "z", "gather='z' is not a label of einsum 'ble,ef->blf': choose one of 'blef'"),
        (BLF, "ef", "gather='ef' is not a label"),
        (BLF, ",", "gather=',' is not a label"),
        (BLF, 1, "gather=1 is not a label"),
        (("...e,ef", (2, 3, 4), (4, 5)), "a", "a dimension under '...' needs a letter of its own"),
        (("ii,ij->j", (3, 3), (3, 5)), "i", "repeats 'i' within one operand"),
        (
            ("ble,ef->blf", (2, 3, 16), (16, 5)),
            "e",
            "gather='e' over axis ('x', 'y') of size 4 in einsum 'ble,ef->blf': both operands hold "
            "16 of 'e', so it is not clear which one is the shard. If both are shards, use "
            "einsum_reduce_scatter or einsum_all_reduce, which sum over the devices; else pass one "
            "operand with all 64",
        ),
        (
            ("ble,ef->blf", (2, 3, 3), (8, 5)),
            "e",
            "lhs holds 3 of 'e' and rhs holds 8; one of them must hold 4 times the other: rhs 12 "
            "if lhs is gathered, or lhs 32 if rhs is",
        ),
    ],
)
def test_gathers_that_mean_nothing(case: Any, label: Any, words: str):
    text, shapes = case[0], case[1:]
    with pytest.raises(ValueError, match=re.escape(words)):
        resolve_gather(parse(text, *shapes), label, *shapes, n=4, axis_name=("x", "y"))


@pytest.mark.parametrize(
    ("case", "label", "n", "expected"),
    [
        (("blf,fe->ble", (2, 3, 5), (5, 8)), "e", 4, Scatter("e", 4, 8, 2, None, 1, 2)),
        (("blf,fe->ble", (2, 3, 5), (5, 8)), "b", 2, Scatter("b", 2, 2, 1, 0, None, 0)),
        (("bi,bi->b", (6, 2), (6, 2)), "b", 3, Scatter("b", 3, 6, 2, 0, 0, 0)),
        (("bi,bi->b", (1, 2), (6, 2)), "b", 3, Scatter("b", 3, 6, 2, 0, 0, 0)),
        (("bi,bi->b", (6, 2), (1, 2)), "b", 3, Scatter("b", 3, 6, 2, 0, 0, 0)),
        (("ij,jk", (7, 2), (2, 3)), "i", 7, Scatter("i", 7, 7, 1, 0, None, 0)),
        (("ij,jk", (7, 2), (2, 3)), "i", 1, Scatter("i", 1, 7, 7, 0, None, 0)),
    ],
)
def test_a_scatter_leaves_a_share_of_the_output(case: Any, label: str, n: int, expected: Scatter):
    text, shapes = case[0], case[1:]
    assert resolve_scatter(parse(text, *shapes), label, *shapes, n=n, axis_name="x") == expected


@pytest.mark.parametrize(
    ("case", "label", "words"),
    [
        (
            BLF,
            "e",
            "scatter='e' over axis 'x' of size 4: einsum 'ble,ef->blf' sums over 'e', so the "
            "output "
            "has nothing of it to scatter; scatter one of 'blf', or use einsum_all_reduce",
        ),
        (("i,i", (4,), (4,)), "i", "nothing of it to scatter; use einsum_all_reduce"),
        (("bi,j->j", (4, 4), (4,)), "b", "sums over 'b'"),
        (BLF, "q", "scatter='q' is not a label of einsum 'ble,ef->blf': choose one of 'blef'"),
        (("ii,ij->ij", (4, 4), (4, 8)), "i", "take the diagonal first"),
        (
            BLF,
            "f",
            "4 does not divide the size 5 of 'f'; the nearest that it divides: 4 or 8. Pad 'f' "
            "with zeros and slice the result, or scatter another label",
        ),
        (BLF, "l", "4 does not divide the size 3 of 'l'; the nearest that it divides: 4. Pad"),
    ],
)
def test_scatters_that_mean_nothing(case: Any, label: str, words: str):
    text, shapes = case[0], case[1:]
    with pytest.raises(ValueError, match=re.escape(words)):
        resolve_scatter(parse(text, *shapes), label, *shapes, n=4, axis_name="x")


def test_both_ends_need_two_sets_of_axes():
    spec = parse(*BLF)
    check_both_ends(spec, "e", "f", gather_axes=("y", "z"), scatter_axes=("x",))
    check_both_ends(spec, "l", "l", gather_axes=("y",), scatter_axes=("x",))
    with pytest.raises(ValueError, match=r"share the axis 'z'.*Use different axes"):
        check_both_ends(spec, "e", "f", gather_axes=("y", "z"), scatter_axes=("z", "x"))
