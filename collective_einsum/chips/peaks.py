"""Peak flop/s of a dot by the dtypes of its operands and its precision.

XLA:TPU multiplies bf16, and int8 where the matrix unit can, and splits f32 into three bf16 terms. Its
`estimated_cycles` (libtpu 0.0.50.1) of each further row of [M, 4608] x [4608, 4608], from M=4096 to
8192, relative to bf16 x bf16:

| operands                      | v4  | v5e | v5p | v6e | 7x  | products                        |
|-------------------------------|-----|-----|-----|-----|-----|---------------------------------|
| f32 x f32, Precision.DEFAULT  | 0.9 | 1.0 |     | 1.1 | 1.8 | 1 of bf16                       |
| f32 x f32, Precision.HIGH     | 2.8 | 3.1 | 3.1 | 3.1 | 3.5 | 3 of bf16                       |
| f32 x f32, Precision.HIGHEST  | 5.5 | 5.9 |     | 5.9 | 5.7 | 6 of bf16                       |
| bf16 x f32, Precision.HIGHEST | 2.8 | 2.9 |     |     | 2.4 | 3 of bf16                       |
| int8 x int8                   | 1.0 | 0.5 | 0.5 | 0.7 | 1.0 | 1 of int8                       |
| bf16 x int8                   | 0.9 | 1.0 |     |     | 1.0 | 1 of bf16, after widening       |
| f16 x f16                     | 1.1 | 1.0 |     |     | 1.2 | as 1 of bf16                    |
| f8e4m3fn x f8e4m3fn           | 1.1 | 1.0 |     |     | 0.5 | as 1 of bf16; on TPU7x 1 of fp8 |
"""

from __future__ import annotations

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .chip import Chip

_Level = Literal["default", "high", "highest"]
_LEVELS: tuple[_Level, ...] = ("default", "high", "highest")
_NAMES: dict[str, _Level] = {
    "high": "high",
    "bfloat16_3x": "high",
    "tensorfloat32": "high",
    "highest": "highest",
    "float32": "highest",
    "f32_f32_f32": "highest",
}


def peak_flops(
    chip: Chip, lhs_dtype: DTypeLike, rhs_dtype: DTypeLike, precision: lax.PrecisionLike = None
) -> float:
    """Peak flop/s, or op/s of integers, of a dot of these dtypes.

    Args:
      chip: the chip.
      lhs_dtype: of one operand, before any conversion.
      rhs_dtype: of the other.
      precision: as `jnp.einsum` takes it; it counts for operands of 32 bits alone.
    """
    dtypes = [jnp.dtype(lhs_dtype), jnp.dtype(rhs_dtype)]
    if all(is_int8(dtype) for dtype in dtypes):
        return chip.int8_ops
    if chip.fp8_flops and all(is_fp8(dtype) for dtype in dtypes):
        return chip.fp8_flops
    wide = sum(_is_wide(dtype) for dtype in dtypes)
    if not wide:
        return chip.bf16_flops
    level = _level(precision)
    if wide == 1 and level != "default":
        # A narrow operand is one bf16 term, not the sum of three: half of the products.
        level = "high"
    by_level = {
        "default": chip.f32_default_flops,
        "high": chip.f32_high_flops,
        "highest": chip.f32_flops,
    }
    return by_level[level]


@functools.cache
def is_int8(dtype: np.dtype[np.generic]) -> bool:
    """Whether a dtype is of integers of one byte."""
    return jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize == 1


@functools.cache
def is_fp8(dtype: np.dtype[np.generic]) -> bool:
    """Whether a dtype is of floating numbers of one byte."""
    return jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize == 1


@functools.cache
def _is_wide(dtype: np.dtype[np.generic]) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4


def _level(precision: lax.PrecisionLike) -> _Level:
    if precision is None:
        return "default"
    if isinstance(precision, lax.DotAlgorithm):
        count = precision.num_primitive_operations
        exact = jnp.dtype(precision.lhs_precision_type) == jnp.dtype(jnp.float32)
        return "highest" if exact or count > 3 else "high" if count == 3 else "default"
    if isinstance(precision, tuple):
        levels = {_level(one) for one in precision}
        return next(level for level in reversed(_LEVELS) if level in levels)
    name = str(getattr(precision, "name", precision)).lower()
    if name.endswith("_x3"):
        return "high"
    if name.endswith(("_x6", "_x9")):
        return "highest"
    return _NAMES.get(name, "default")
