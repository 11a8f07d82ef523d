"""Peak flop/s of a dot by the dtypes of its operands and its precision.

A TPU's matrix unit multiplies bf16. XLA:TPU makes other dots of it, which `estimated_cycles` of compiled
dots shows: libtpu 0.0.50.1, [8192, 4608] x [4608, 4608], cycles relative to bf16 x bf16.

| operands                                   | v4   | v5e  | priced at         |
|--------------------------------------------|------|------|-------------------|
| f32 x f32, Precision.DEFAULT               | 1.0  | 1.0  | f32_default_flops |
| f32 x f32, Precision.HIGH                  | 3.2  | 3.1  | f32_high_flops    |
| f32 x f32, Precision.HIGHEST               | 6.3  | 5.9  | f32_flops         |
| bf16 x f32, Precision.HIGHEST              | 3.2  | 3.0  | f32_high_flops    |
| int8 x int8                                | 1.1  | 0.50 | int8_ops          |
| bf16 x int8, f16 x f16, f8e4m3fn x f8e4m3fn | 1.0 to 1.3 | 1.0 | bf16_flops  |

`tests/collective_einsum/test_dot_rates.py` compiles the examples.
"""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from .chip import Chip

# What `precision=` of jnp.einsum takes: None, a name, a `lax.Precision`, one of each operand, or a
# `lax.DotAlgorithmPreset`.
Precision = object
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
    chip: Chip, lhs_dtype: DTypeLike, rhs_dtype: DTypeLike, precision: Precision = None
) -> float:
    """Peak flop/s, or op/s of integers, of a dot of operands of these dtypes.

    Args:
      chip: the chip.
      lhs_dtype: of one operand, before any conversion.
      rhs_dtype: of the other.
      precision: as `jnp.einsum` takes it; it counts for operands of 32 bits alone.
    """
    dtypes = [jnp.dtype(lhs_dtype), jnp.dtype(rhs_dtype)]
    if all(dtype.itemsize == 1 and jnp.issubdtype(dtype, jnp.integer) for dtype in dtypes):
        return chip.int8_ops
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


def _is_wide(dtype: np.dtype[np.generic]) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize >= 4


def _level(precision: Precision) -> _Level:
    if precision is None:
        return "default"
    if isinstance(precision, tuple):
        return max(map(_level, precision), key=_LEVELS.index)
    name = str(getattr(precision, "name", precision)).lower()
    if name.endswith("_x3"):
        return "high"
    if name.endswith(("_x6", "_x9")):
        return "highest"
    return _NAMES.get(name, "default")
