"""Quantized operands: how close the stored array is, and that its scale may wait until after the
dot."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.spec.quantized import Quantized, quantize, split_scale
from collective_einsum.spec.spec import parse


def random(shape: tuple[int, ...], seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    # Channels of very different magnitude, so that a scale applied to the wrong one is a gross
    # error.
    base = jax.random.normal(jax.random.key(seed), shape)
    return (base * 10.0 ** jax.random.normal(jax.random.key(seed + 1), shape[-1:])).astype(dtype)


@given(
    hnp.arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from([0, -1, (0, 1)]),
    st.sampled_from([jnp.int8, jnp.int4]),
)
def test_an_element_is_off_by_half_its_scale_at_most(x: np.ndarray, axis: Any, dtype: Any):
    q = quantize(x, axis, dtype=dtype)
    assert q.values.dtype == dtype
    assert (q.shape, q.ndim, q.dtype) == (x.shape, x.ndim, np.float32)
    magnitude = np.abs(x).max(axis=axis, keepdims=True)
    assert q.scale.shape == magnitude.shape
    values = np.asarray(q.values.astype(jnp.int32))
    largest = jnp.iinfo(dtype).max
    assert np.abs(values).max() <= largest
    # One division and one product of float32 round on top of the half step.
    step = np.asarray(q.scale, np.float64) * (0.5 + 4 * largest * np.finfo(np.float32).eps)
    # A scale below the normal range is rounded, or is no longer there; no more than x is lost.
    subnormal = magnitude < np.finfo(np.float32).tiny * largest
    error = np.abs(values * np.asarray(q.scale, np.float64) - x)
    assert (error <= np.where(subnormal, magnitude, step)).all()
    np.testing.assert_allclose(q.dequantize(), values * np.asarray(q.scale), rtol=1e-6, atol=1e-37)


def test_zero_channels_and_whole_numbers_are_exact():
    x = jnp.array([[0.0, -127.0, 0.5], [0.0, 3.0, -0.25], [-0.0, 64.0, 0.0]])
    q = quantize(x, 0)
    np.testing.assert_array_equal(q.scale[0, :2], [1, 1])
    np.testing.assert_array_equal(q.values[:, :2], x[:, :2].astype(jnp.int8))
    np.testing.assert_array_equal(q.values[:, 2], [127, -64, 0])
    np.testing.assert_array_equal(q.dequantize()[:, :2], x[:, :2])
    assert quantize(-x, 0).values[0, 2] == -127


def test_dtype_of_the_array_stood_for():
    x = random((4, 3), dtype=jnp.bfloat16)
    assert quantize(x, 0).dtype == jnp.bfloat16
    assert quantize(x, 0).dequantize().dtype == jnp.bfloat16
    assert quantize(x, 0).scale.dtype == jnp.float32
    assert quantize(x, 0, stands_for=jnp.float32).dequantize().dtype == jnp.float32
    assert Quantized(x, x).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("x", "options", "words"),
    [
        (
            jnp.ones((2, 3), jnp.int32),
            {"axis": 0},
            "needs a floating array, got int32 of shape (2, 3)",
        ),
        (jnp.ones((2, 3)), {"axis": 0, "dtype": jnp.int16}, "at most 8 bits, not int16"),
        (jnp.ones((2, 3)), {"axis": 0, "dtype": jnp.uint8}, "signed integers of at most 8 bits"),
        (jnp.ones((2, 3)), {"axis": 2}, "axis=2 must name one or more different dimensions of an"),
        (jnp.ones((2, 3)), {"axis": (0, -2)}, "axis=(0, -2) must name"),
        (jnp.ones((2, 3)), {"axis": ()}, "axis=() must name"),
        (
            jnp.ones((2, 3)),
            {"axis": 0, "stands_for": jnp.int8},
            "stands_for=int8 is not a floating",
        ),
    ],
)
def test_what_cannot_be_quantized(x: jax.Array, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=re.escape(words)):
        quantize(x, **options)


@pytest.mark.parametrize("vma", [True, False], ids=["checked", "unchecked"])
@pytest.mark.parametrize("axes", ["a", ("b", "a")], ids=str)
def test_the_scale_of_a_sharded_array_is_that_of_the_whole(
    mesh_of: Any, axes: Any, vma: bool
) -> None:
    """Also where types say over which axes it varies: an einsum that sums over them takes it."""
    x, mesh = random((6, 16), dtype=jnp.bfloat16), mesh_of((2, 4), "ab")
    spec, whole = P(None, axes), quantize(x, 1)
    made = jax.shard_map(
        lambda x: quantize(x, 1, axis_name=axes),
        mesh=mesh,
        in_specs=spec,
        out_specs=whole.partition_specs(spec),
        check_vma=vma,
    )(x)
    assert made.dtype == jnp.bfloat16
    np.testing.assert_array_equal(made.values, whole.values)
    np.testing.assert_array_equal(made.scale, whole.scale)
    w = quantize(random((16, 8), seed=1), 0, stands_for=jnp.bfloat16)

    def product(x: jax.Array, w: Quantized) -> jax.Array:
        own = quantize(x, 1, axis_name=axes)
        return ce.einsum_reduce_scatter("mk,kn->mn", own, w, axis_name=axes, scatter="n")

    y = jax.shard_map(
        product,
        mesh=mesh,
        in_specs=(spec, w.partition_specs(P(axes, None))),
        out_specs=spec,
        check_vma=vma,
    )(x, w)
    wanted = np.asarray(whole.dequantize(), np.float32) @ np.asarray(w.dequantize(), np.float32)
    np.testing.assert_allclose(y, wanted, rtol=2e-2, atol=2e-2 * np.abs(wanted).max())


def test_axes_of_a_sharded_array_are_those_around_it() -> None:
    for axes, words in (("a", "axis 'a'"), ((), "axis_name is empty"), (("a", "a"), "twice")):
        with pytest.raises(ValueError, match=words):
            quantize(jnp.ones((2, 3)), 0, axis_name=axes)


OTHER = {"a": 2, "b": 3, "i": 4, "j": 5, "k": 6}


@pytest.mark.parametrize(
    ("text", "side", "axis"),
    [
        ("ij,jk->ik", "rhs", 0),
        ("ij,jk->ki", "rhs", 0),
        ("ij,jk->ik", "lhs", 1),
        ("ij,jk->ik", "lhs", (0, 1)),
        ("bij,bjk->bik", "rhs", 1),
        ("bij,bjk->kib", "rhs", 1),
        ("bij,bjk->kib", "rhs", (0, 1)),
        ("ij,jkab->aikb", "rhs", 0),
        ("ij,ajbk->kiba", "rhs", 1),
        ("ij,ajbk->kia", "rhs", (1, 2)),
        ("ij,jk->k", "lhs", (0, 1)),
        ("i,j->ji", "lhs", 0),
        ("ij,jj->ij", "rhs", (0, 1)),
        ("ij,ij->", "rhs", (0, 1)),
        ("...j,jk", "rhs", 0),
    ],
)
def test_the_scale_may_wait_until_after_the_dot(text: str, side: str, axis: Any):
    terms = text.replace("...", "ba").split("->")[0].split(",")
    lhs, rhs = (random(tuple(OTHER[c] for c in term), n) for n, term in enumerate(terms))
    spec = parse(text, lhs.shape, rhs.shape)
    labels = spec.lhs if side == "lhs" else spec.rhs

    def after(quantized: Quantized, other: jax.Array) -> jax.Array:
        values, scale = split_scale(spec, labels, quantized, spec.out)
        assert values.dtype == jnp.int8
        assert scale.ndim == len(spec.out)
        pair = (values.astype(jnp.float32), other)
        return jnp.einsum(spec.formula, *(pair if side == "lhs" else pair[::-1])) * scale

    q = quantize(lhs if side == "lhs" else rhs, axis)
    whole = (q.dequantize(), rhs) if side == "lhs" else (lhs, q.dequantize())
    result = jax.jit(after)(q, rhs if side == "lhs" else lhs)
    expected = jnp.einsum(spec.formula, *whole)
    # Both sum the same products in another order: a few float32 ulps of the largest magnitude.
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6 * float(abs(expected).max()))


@pytest.mark.parametrize(
    ("text", "shapes", "axis", "words"),
    [
        (
            "ij,jk->ik",
            ((4, 5), (5, 6)),
            1,
            "einsum 'ij,jk->ik': the scale of 'jk' has size 5 along 'j', which is summed over, so "
            "it cannot be applied after the dot; make it with quantize(x, axis=(0,))",
        ),
        ("ij,ajk->i", ((4, 5), (2, 5, 6)), 1, "size 2 along 'a', which is summed over"),
        ("ij,ajk->i", ((4, 5), (2, 5, 6)), 1, "make it with quantize(x, axis=(0, 1, 2))"),
        ("ij,jj->ij", ((4, 5), (5, 5)), 1, "size 5 along 'j', which is repeated"),
        ("ij,jj->ij", ((4, 5), (5, 5)), 1, "make it with quantize(x, axis=(0, 1))"),
        ("ij,jkk->ik", ((4, 5), (5, 6, 6)), 1, "make it with quantize(x, axis=(0, 1, 2))"),
    ],
)
def test_a_scale_that_varies_along_a_summed_label(text: str, shapes: Any, axis: int, words: str):
    spec = parse(text, *shapes)
    q = quantize(random(shapes[1]), axis)
    with pytest.raises(ValueError, match=re.escape(words)):
        split_scale(spec, spec.rhs, q, spec.out)


@pytest.mark.parametrize(("values", "scale"), [((5, 6), (6,)), ((5, 6), (1, 3)), ((5,), (1,))])
def test_a_scale_that_does_not_fit(values: tuple[int, ...], scale: tuple[int, ...]):
    spec = parse("ij,jk->ik", (4, 5), (5, 6))
    q = Quantized(jnp.ones(values, jnp.int8), jnp.ones(scale))
    words = f"values of shape {values} and scale of shape {scale} does not fit 'jk'"
    with pytest.raises(ValueError, match=re.escape(words)):
        split_scale(spec, "jk", q, "ik")


def product(x: jax.Array, q: Quantized) -> jax.Array:
    """A layer: [B, E] by [E, F]."""
    spec = parse("be,ef->bf", x.shape, q.shape)
    values, scale = split_scale(spec, spec.rhs, q, spec.out)
    return jnp.einsum(spec.formula, x, values.astype(x.dtype)) * scale


def test_scan_and_vmap_slice_values_and_scale_alike():
    x = random((2, 4))
    stacked = quantize(random((3, 4, 4)), 1)
    expected = [product(x, quantize(w, 0)) for w in stacked.dequantize()]
    mapped = jax.vmap(product, in_axes=(None, 0))(x, stacked)
    _, scanned = jax.lax.scan(lambda c, q: (c, product(x, q)), 0, stacked)
    for results in (mapped, scanned):
        for result, one in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, one, rtol=1e-4, atol=1e-4 * float(abs(one).max()))


def test_gradients_flow_to_the_other_operand_and_not_to_integers():
    x, q = random((2, 4)), quantize(random((4, 5), 1), 0)
    cotangent = random((2, 5), 2)
    _, vjp = jax.vjp(product, x, q)
    to_x, to_q = vjp(cotangent)
    np.testing.assert_allclose(to_x, cotangent @ q.dequantize().T, rtol=1e-4, atol=1e-5)
    assert isinstance(to_q, Quantized)
    assert to_q.values.dtype == jax.dtypes.float0
    np.testing.assert_allclose(
        to_q.scale,
        jnp.einsum("bf,be,ef->f", cotangent, x, q.values.astype(jnp.float32))[None],
        rtol=1e-4,
        atol=1e-3,
    )
    gradient = jax.grad(lambda a: product(a, q).sum())(x)
    by_hand = jnp.broadcast_to(q.dequantize().sum(1), x.shape)
    np.testing.assert_allclose(gradient, by_hand, rtol=1e-4, atol=1e-4)


def test_one_spelling_of_a_dtype():
    x = jnp.ones((2, 2))
    one, other = Quantized(x, x, jnp.bfloat16), Quantized(x, x, "bfloat16")
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert hash(jax.tree.structure(one)) == hash(jax.tree.structure(other))
    abstract = jax.eval_shape(lambda a: quantize(a, 0), x)
    assert (abstract.shape, abstract.scale.shape, abstract.dtype) == ((2, 2), (1, 2), jnp.float32)


@pytest.mark.parametrize("explicit", [False, True])
def test_partition_specs_shard_both_parts(mesh_of, explicit: bool):
    mesh = mesh_of((2, 4), ("x", "y"), explicit=explicit)
    x, q = random((2, 8)), quantize(random((8, 12), 1), 0)
    specs = q.partition_specs(P("x", "y"))
    assert (specs.values, specs.scale, specs.dtype) == (P("x", "y"), P(None, "y"), jnp.float32)

    def local(x: jax.Array, q: Quantized) -> jax.Array:
        assert (q.shape, q.scale.shape) == ((4, 3), (1, 3))
        return jax.lax.psum(product(x, q), "x")

    placed = jax.device_put(q, jax.tree.map(lambda s: NamedSharding(mesh, s), specs))
    spec = P(None, "x")
    lhs = jax.device_put(x, NamedSharding(mesh, spec))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=(spec, specs), out_specs=P(None, "y"))
    result = jax.jit(mapped)(lhs, placed)
    expected = x @ q.dequantize()
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4 * float(abs(expected).max()))


def test_partition_specs_of_fewer_and_of_too_many_dimensions():
    q = quantize(random((8, 12)), 0)
    specs = q.partition_specs(P(("x", "y")))
    assert (specs.values, specs.scale) == (P(("x", "y")), P(None))
    with pytest.raises(
        ValueError, match=re.escape("has 3 entries for a Quantized of shape (8, 12)")
    ):
        q.partition_specs(P("x", None, "y"))
