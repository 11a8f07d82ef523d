"""Dtypes are einsum's own, or are refused because a value would be lost."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from collective_einsum.spec.dtypes import (
    Dtypes,
    accumulator_dtype,
    check_dtypes,
    check_wire_dtype,
    result_dtype,
    summed_terms,
)
from collective_einsum.spec.spec import parse

SHAPES = (2, 3), (3, 4)
SPEC = parse("ij,jk->ik", *SHAPES)
DTYPES = [
    *(jnp.int4, jnp.int8, jnp.int16, jnp.int32, jnp.uint8, jnp.uint32),
    *(jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64),
]


def einsum_dtype(lhs, rhs, preferred) -> np.dtype | None:
    """What plain einsum returns, None where it refuses."""
    structs = [jax.ShapeDtypeStruct(s, d) for s, d in zip(SHAPES, (lhs, rhs), strict=True)]
    try:
        traced = jax.eval_shape(
            lambda a, b: jnp.einsum("ij,jk->ik", a, b, preferred_element_type=preferred), *structs
        )
    except (TypeError, ValueError):
        return None
    return traced.dtype


def loses_a_value(lhs, rhs, result, terms: int) -> bool:
    """Whether an accepted einsum may drop an imaginary part, a fraction, a sign or high bits."""
    kinds = [jnp.complexfloating, jnp.floating, jnp.integer]
    for kind in kinds[:2]:
        if jnp.issubdtype(lhs, kind) or jnp.issubdtype(rhs, kind):
            return not any(jnp.issubdtype(result, k) for k in kinds[: kinds.index(kind) + 1])
    if not jnp.issubdtype(result, jnp.integer):
        return False
    signed = [jnp.issubdtype(dtype, jnp.signedinteger) for dtype in (lhs, rhs, result)]
    if (signed[0] or signed[1]) and not signed[2]:
        return True
    info = jnp.iinfo
    if max(info(lhs).bits, info(rhs).bits) >= 32:
        return False
    ends = [
        int(a) * int(b)
        for a in (info(lhs).min, info(lhs).max)
        for b in (info(rhs).min, info(rhs).max)
    ]
    return not all(info(result).min <= end * terms <= info(result).max for end in ends)


@pytest.mark.parametrize(
    ("preferred", "promotion"),
    [*((d, "standard") for d in (None, *DTYPES)), *((d, "strict") for d in (None, jnp.float32))],
    ids=str,
)
def test_results_have_einsums_dtype_or_are_refused(preferred, promotion):
    with jax.numpy_dtype_promotion(promotion):
        for lhs, rhs in itertools.product(DTYPES, DTYPES):
            plain = einsum_dtype(lhs, rhs, preferred)
            if plain is None or loses_a_value(lhs, rhs, plain, terms=3):
                with pytest.raises(ValueError, match="einsum 'ij,jk->ik'"):
                    check_dtypes(SPEC, lhs, rhs, terms=3, preferred_element_type=preferred)
            else:
                dtypes = check_dtypes(SPEC, lhs, rhs, terms=3, preferred_element_type=preferred)
                assert dtypes == Dtypes(plain, accumulator_dtype(plain))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (jnp.float8_e5m2, jnp.float32),
        (jnp.float16, jnp.float32),
        (jnp.bfloat16, jnp.float32),
        (jnp.float32, jnp.float32),
        (jnp.float64, jnp.float64),
        (jnp.complex64, jnp.complex64),
        (jnp.int16, jnp.int32),
        (jnp.uint8, jnp.uint32),
        (jnp.int64, jnp.int64),
    ],
)
def test_partial_sums_have_32_bits_or_more(dtype, expected):
    assert accumulator_dtype(dtype) == expected


def test_weak_types_and_arrays_count_as_in_einsum():
    weak = jnp.asarray(2.0)
    array = jnp.ones((2, 2), jnp.bfloat16)
    assert result_dtype(weak, array) == jnp.bfloat16
    assert result_dtype(array, np.ones(2, jnp.bfloat16)) == jnp.bfloat16
    assert jax.jit(lambda x: jnp.zeros((), result_dtype(x, array)))(weak).dtype == jnp.bfloat16
    assert check_dtypes(SPEC, array, array, terms=1) == Dtypes(array.dtype, jnp.dtype(jnp.float32))


def test_wide_dtypes_follow_x64():
    assert result_dtype(jnp.float32, jnp.float32, preferred_element_type=jnp.float64) == jnp.float32
    with jax.enable_x64(True):
        dtypes = check_dtypes(
            SPEC, jnp.int8, jnp.int8, terms=1 << 40, preferred_element_type=jnp.int64
        )
        assert dtypes == Dtypes(jnp.dtype(jnp.int64), jnp.dtype(jnp.int64))
        with pytest.raises(ValueError, match=r"Use preferred_element_type=jnp\.int64 or"):
            check_dtypes(SPEC, jnp.int8, jnp.int8, terms=1 << 40)


@pytest.mark.parametrize(
    ("lhs", "rhs", "most"),
    [
        (jnp.int8, jnp.int8, (2**31 - 1) // 2**14),
        (jnp.uint8, jnp.uint8, (2**31 - 1) // 255**2),
        (jnp.int8, jnp.uint8, 2**31 // (128 * 255)),
        (jnp.int16, jnp.int16, 1),
        (jnp.int4, jnp.int4, (2**31 - 1) // 2**6),
    ],
)
def test_narrow_integers_are_summed_up_to_the_last_safe_length(lhs, rhs, most: int):
    with jax.numpy_dtype_promotion("standard"):
        dtypes = check_dtypes(SPEC, lhs, rhs, terms=most, preferred_element_type=jnp.int32)
        assert dtypes.result == jnp.int32
        with pytest.raises(ValueError, match=f"integer overflow: {most + 1} products of"):
            check_dtypes(SPEC, lhs, rhs, terms=most + 1, preferred_element_type=jnp.int32)
        check_dtypes(SPEC, lhs, rhs, terms=most + 1, preferred_element_type=jnp.float32)


def test_the_safe_length_is_tight():
    most = (2**31 - 1) // 2**14
    worst = jnp.full((1, most), -128, jnp.int8)
    total = jnp.einsum("ij,kj->ik", worst, worst, preferred_element_type=jnp.int32)
    assert int(total[0, 0]) == most * 2**14 > 0


@pytest.mark.parametrize(
    ("lhs", "preferred", "words"),
    [
        (jnp.bool_, None, "einsum 'ij,jk->ik': lhs is bool; cast it, for example with lhs.astype"),
        (np.dtype(object), None, "lhs has dtype object, which is not numeric"),
        (
            jnp.int8,
            None,
            "einsum 'ij,jk->ik': integer overflow: 3 products of int8 and int8 sum to as much as "
            "49152, which int8 does not hold. Use preferred_element_type=jnp.int32 or "
            "preferred_element_type=jnp.float32, or cast both operands to jnp.int32 to accept",
        ),
        (jnp.int8, jnp.int16, "which int16 does not hold"),
        (jnp.int16, jnp.int32, "int32 does not hold. Use preferred_element_type=jnp.float32, or"),
        (
            jnp.int8,
            jnp.uint32,
            "preferred_element_type=uint32 cannot hold the integer products of int8 and",
        ),
        (jnp.int32, jnp.int16, "or prefer a dtype that keeps their kind, sign and width"),
        (
            jnp.int32,
            jnp.bfloat16,
            "preferred_element_type=bfloat16 cannot hold the integer products",
        ),
        (
            jnp.float32,
            jnp.int32,
            "cannot hold the floating products of float32 and float32; leave it out",
        ),
        (
            jnp.complex64,
            jnp.float32,
            "preferred_element_type=float32 cannot hold the complex products",
        ),
        (jnp.float32, jnp.bool_, "preferred_element_type=bool cannot hold"),
    ],
)
def test_what_would_lose_a_value_is_refused(lhs, preferred, words: str):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_dtypes(SPEC, lhs, lhs, terms=3, preferred_element_type=preferred)


@pytest.mark.parametrize(
    ("operand", "preferred", "accumulator"),
    [
        (jnp.bfloat16, None, jnp.bfloat16),
        (jnp.bfloat16, None, jnp.float32),
        (jnp.int8, jnp.float32, jnp.int32),
        (jnp.int8, jnp.int32, jnp.int32),
        (jnp.complex64, None, jnp.complex64),
    ],
)
def test_the_accumulator_may_be_given(operand, preferred, accumulator):
    options = {"preferred_element_type": preferred, "accumulator": accumulator}
    dtypes = check_dtypes(SPEC, operand, operand, terms=3, **options)
    assert dtypes == Dtypes(jnp.dtype(preferred or operand), jnp.dtype(accumulator))


@pytest.mark.parametrize(
    ("operand", "preferred", "accumulator", "words"),
    [
        (
            jnp.bfloat16,
            None,
            jnp.int32,
            "accumulator_dtype=int32 cannot hold the floating products",
        ),
        (jnp.complex64, None, jnp.float32, "accumulator_dtype=float32 cannot hold the complex"),
        (jnp.int8, jnp.float32, jnp.int16, "sum to as much as 49152, which int16 does not hold"),
        (jnp.int32, None, jnp.int16, "accumulator_dtype=int16 cannot hold the integer products"),
        (
            jnp.float32,
            None,
            jnp.complex64,
            "sums in accumulator_dtype=complex64 cannot become a float32 result; give a floating",
        ),
        (jnp.int32, None, jnp.float32, "sums in accumulator_dtype=float32 cannot become a int32"),
    ],
)
def test_accumulators_that_lose_a_value_are_refused(operand, preferred, accumulator, words: str):
    options = {"preferred_element_type": preferred, "accumulator": accumulator}
    with pytest.raises(ValueError, match=f"einsum 'ij,jk->ik': .*{re.escape(words)}"):
        check_dtypes(SPEC, operand, operand, terms=3, **options)


def test_random_keys_and_bool_rhs_are_refused():
    with pytest.raises(ValueError, match=r"rhs has dtype key<fry>, which is not numeric"):
        check_dtypes(SPEC, jnp.float32, jax.random.key(0), terms=3)
    with pytest.raises(ValueError, match=r"rhs\.astype\(jnp\.int32\)"):
        check_dtypes(SPEC, jnp.float32, jnp.bool_, terms=3)


def test_wide_integers_are_the_users_choice():
    huge = 1 << 40
    assert check_dtypes(SPEC, jnp.int32, jnp.int32, terms=huge).result == jnp.int32
    with jax.numpy_dtype_promotion("standard"):
        assert check_dtypes(SPEC, jnp.int8, jnp.int32, terms=huge).result == jnp.int32


def test_terms_count_every_product_of_an_output_element():
    spec = parse("bijk,blj->li", (2, 3, 4, 5), (2, 7, 4))
    assert summed_terms(spec, {"b": 2, "i": 3, "j": 4, "k": 5, "l": 7}) == 2 * 4 * 5
    assert summed_terms(spec, {"b": 2, "i": 3, "j": 4, "k": 5, "l": 7}, n=8) == 2 * 4 * 5 * 8
    assert summed_terms(parse("i,j->ij", (2,), (3,)), {"i": 2, "j": 3}) == 1


def test_the_wire_carries_the_same_kind():
    assert check_wire_dtype(SPEC, None, jnp.bfloat16) == jnp.bfloat16
    assert check_wire_dtype(SPEC, jnp.bfloat16, jnp.float32) == jnp.bfloat16
    assert check_wire_dtype(SPEC, "float32", jnp.bfloat16) == jnp.float32
    assert check_wire_dtype(SPEC, jnp.int32, jnp.uint8) == jnp.int32
    for wire, moving, words in [
        (
            jnp.int8,
            jnp.bfloat16,
            "cannot carry bfloat16 values; give a floating dtype, or quantize",
        ),
        (jnp.float32, jnp.complex64, "cannot carry complex64 values; give a complex dtype"),
        (jnp.int16, jnp.int32, "wire_dtype=int16 overflows for int32 values; leave it out"),
        (jnp.uint32, jnp.int32, "wire_dtype=uint32 overflows for int32"),
        (jnp.bool_, jnp.int32, "wire_dtype=bool cannot carry int32"),
    ]:
        with pytest.raises(ValueError, match=f"einsum 'ij,jk->ik': .*{re.escape(words)}"):
            check_wire_dtype(SPEC, wire, moving)
