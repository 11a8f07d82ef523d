"""The dtypes of an einsum: of its result, its partial sums and the wire, and which are refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from .spec import Spec, sides

# An array (whose weak type counts), anything else with a dtype, or a dtype.
DTypeOrArray = Any

# Narrower integers must be safe from overflow; these and wider are summed as plain einsum does.
_WIDE_INTEGER_BITS = 32


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """`result` is einsum's own result dtype; partial sums are kept in `accumulator`."""

    result: jnp.dtype
    accumulator: jnp.dtype


# In order of generality: each kind holds the values of those before it, as `jnp.einsum` has it.
_KINDS = {"integer": jnp.integer, "floating": jnp.floating, "complex": jnp.complexfloating}


def _rank(dtype: jnp.dtype) -> int:
    """Place of the dtype's kind in `_KINDS`, -1 for a dtype that is no number."""
    kinds = enumerate(_KINDS.values())
    return next((rank for rank, kind in kinds if jnp.issubdtype(dtype, kind)), -1)


def _kind(dtype: jnp.dtype) -> str | None:
    rank = _rank(dtype)
    return None if rank < 0 else list(_KINDS)[rank]


def _bits(dtype: jnp.dtype) -> int:
    """Width of a number, or of the real part of a complex one."""
    return (jnp.iinfo if _kind(dtype) == "integer" else jnp.finfo)(dtype).bits


def _is_small_integer(dtype: jnp.dtype) -> bool:
    return _kind(dtype) == "integer" and _bits(dtype) < _WIDE_INTEGER_BITS


def _dtype_of(operand: DTypeOrArray) -> jnp.dtype:
    dtype: Any = operand if isinstance(operand, type) else getattr(operand, "dtype", operand)
    # Extended dtypes, such as those of random keys, cannot be made into numpy dtypes.
    return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else jnp.dtype(dtype)


def result_dtype(
    *operands: DTypeOrArray, preferred_element_type: DTypeLike | None = None
) -> jnp.dtype:
    """The dtype `jnp.einsum` would return, for arrays or dtypes.

    Raises:
      ValueError: no implicit promotion (two float8 formats, or jax's strict promotion mode).
    """
    if preferred_element_type is not None:
        return jnp.dtype(jax.dtypes.canonicalize_dtype(preferred_element_type))
    weak_or_not = [x if isinstance(x, jax.Array) else _dtype_of(x) for x in operands]
    return jnp.dtype(jnp.result_type(*weak_or_not))


def accumulator_dtype(result: DTypeLike) -> jnp.dtype:
    """The dtype that partial sums are kept in: at least 32 bits, and otherwise the result's.

    float32 for bfloat16, float16 and float8 results; int32 (uint32) for integers under 32 bits.
    """
    result = jnp.dtype(result)
    if _is_small_integer(result):
        unsigned = jnp.issubdtype(result, jnp.unsignedinteger)
        return jnp.dtype(jnp.uint32 if unsigned else jnp.int32)
    single = jnp.dtype(jnp.float32)
    return single if _kind(result) == "floating" and result.itemsize < single.itemsize else result


def summed_terms(spec: Spec, sizes: dict[str, int], n: int = 1) -> int:
    """How many products are added into one output element when `n` devices each add their own."""
    return n * math.prod(sizes[label] for label in spec.summed_labels)


def check_dtypes(
    spec: object,
    *operands: DTypeOrArray,
    terms: int,
    preferred_element_type: DTypeLike | None = None,
    accumulator: DTypeLike | None = None,
) -> Dtypes:
    """The dtypes of an einsum, or an error for those that would lose a value silently.

    Plain einsum multiplies int8 by int8 into int8, wrapping around. Here operands narrower than 32
    bits must be safe in the worst case: the largest product times `terms` (see `summed_terms`) fits
    the result. Operands of 32 bits and more behave as in plain einsum, since a wide dtype is the
    caller's explicit choice.

    Args:
      spec: the einsum, for messages.
      operands: arrays or their dtypes, one or more.
      terms: the number of products summed into an output element, over all devices.
      preferred_element_type: as in `jnp.einsum`.
      accumulator: the dtype of partial sums; `accumulator_dtype` of the result unless given.

    Raises:
      ValueError: non-numeric operands, a preferred or accumulator dtype of another kind, or
        possible integer overflow.
    """
    given = [_dtype_of(x) for x in operands]
    for side, dtype in zip(sides(len(given)), given, strict=True):
        if dtype == jnp.bool_:
            raise ValueError(
                f"einsum {spec}: {side} is bool; cast it, for example with {side}.astype(jnp.int32)"
                if len(given) == 2
                else f"einsum {spec}: {side} is bool; cast it, for example with astype(jnp.int32)"
            )
        if _kind(dtype) is None:
            raise ValueError(f"einsum {spec}: {side} has dtype {dtype}, which is not numeric")
    try:
        result = result_dtype(*operands, preferred_element_type=preferred_element_type)
    except ValueError as error:
        raise ValueError(f"einsum {spec}: {error}") from error
    if preferred_element_type is not None:
        _check_holds(spec, "preferred_element_type", result, given)
    _check_overflow(spec, given, result, terms)
    if accumulator is None:
        return Dtypes(result, accumulator_dtype(result))
    sums = jnp.dtype(jax.dtypes.canonicalize_dtype(accumulator))
    _check_holds(spec, "accumulator_dtype", sums, given)
    if _rank(sums) > _rank(result):
        raise ValueError(
            f"einsum {spec}: sums in accumulator_dtype={sums} cannot become a {result} result; "
            f"give a {_kind(result)} accumulator_dtype or leave it out"
        )
    _check_overflow(spec, given, sums, terms)
    return Dtypes(result, sums)


def between(result: jnp.dtype, operands: Sequence[DTypeOrArray]) -> jnp.dtype:
    """The dtype of an intermediate product in an einsum of three and more operands: its `result`'s,
    or sums of its own kind where these operands are of a lesser one."""
    given = [_dtype_of(x) for x in operands]
    if max(map(_rank, given)) == _rank(result):
        return accumulator_dtype(result) if _kind(result) == "integer" else result
    with jax.numpy_dtype_promotion("standard"):
        return accumulator_dtype(functools.reduce(jnp.promote_types, given))


def _check_holds(spec: object, keyword: str, dtype: jnp.dtype, given: Sequence[jnp.dtype]) -> None:
    """Refuses what dot_general refuses, and casts that would drop a sign or an imaginary part."""
    kind = _kind(max(given, key=_rank))
    loses_kind = _rank(dtype) < max(map(_rank, given))
    # A narrower float only rounds; other narrower dtypes lose range.
    wide = [_bits(d) for d in given if _kind(d) == kind != "floating"]
    unsigned = jnp.issubdtype(dtype, jnp.unsignedinteger)
    loses_sign = unsigned and any(jnp.issubdtype(d, jnp.signedinteger) for d in given)
    if loses_kind or loses_sign or _bits(dtype) < max(wide, default=0):
        raise ValueError(
            f"einsum {spec}: {keyword}={dtype} cannot hold the {kind} {_of(given)}; "
            "leave it out and cast the result, or prefer a dtype that keeps their kind, sign and "
            "width"
        )


def _of(given: Sequence[jnp.dtype]) -> str:
    """The terms of the sum, in words."""
    names = " and ".join(map(str, given))
    return f"values of {names}" if len(given) == 1 else f"products of {names}"


def _check_overflow(
    spec: object, given: Sequence[jnp.dtype], result: jnp.dtype, terms: int
) -> None:
    if _kind(result) != "integer" or not all(map(_is_small_integer, given)):
        return
    products = [math.prod(values) for values in itertools.product(*map(_range, given))]
    low, high = min(0, min(products)) * terms, max(products) * terms
    if _fits(low, high, result):
        return
    wider = [
        d
        for d in (jnp.int32, jnp.int64)
        if _fits(low, high, d) and jax.dtypes.canonicalize_dtype(d) == d
    ]
    safe = f"preferred_element_type=jnp.{jnp.dtype(wider[0])} or " if wider else ""
    cast = "cast both operands" if len(given) == 2 else "cast"
    raise ValueError(
        f"einsum {spec}: integer overflow: {terms} {_of(given)} sum to as much as "
        f"{max(high, -low)}, which {result} does not hold. Use "
        f"{safe}preferred_element_type=jnp.float32, or {cast} to jnp.int32 to accept "
        "wrap-around as plain einsum does"
    )


def _range(dtype: DTypeLike) -> tuple[int, int]:
    return int(jnp.iinfo(dtype).min), int(jnp.iinfo(dtype).max)


def _fits(low: int, high: int, dtype: DTypeLike) -> bool:
    return _range(dtype)[0] <= low and high <= _range(dtype)[1]


def check_wire_dtype(
    where: Spec | str, wire_dtype: DTypeLike | None, moving: DTypeLike
) -> jnp.dtype:
    """The dtype in which `moving` values travel: `wire_dtype`, or `moving` itself if None.

    A narrower float or complex rounds each value once per hop where it is re-sent; integers may not
    be narrowed. `where` is the einsum, or the collective, for messages.

    Raises:
      ValueError: a wire dtype of another kind than the values, or a narrower integer.
    """
    moving = jnp.dtype(moving)
    if wire_dtype is None:
        return moving
    where = where if isinstance(where, str) else f"einsum {where}"
    wire = jnp.dtype(jax.dtypes.canonicalize_dtype(wire_dtype))
    if _kind(wire) != _kind(moving):
        raise ValueError(
            f"{where}: wire_dtype={wire} cannot carry {moving} values; give a "
            f"{_kind(moving)} dtype, or quantize the operand to send integers"
        )
    if _kind(wire) == "integer" and not _fits(*_range(moving), wire):
        raise ValueError(f"{where}: wire_dtype={wire} overflows for {moving} values; leave it out")
    return wire
