"""The TPU compiler's estimates of dots by dtype and precision, the source of the chips' dot rates.

`python -m bench.dot_rates v4:2x2x1` compiles the dots for a TPU slice, without a TPU, and prints
a table. `tests/collective_einsum/test_dot_rates.py` compares a few estimates with the rates.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from collective_einsum.ruler.compile import Target, target, versions
from collective_einsum.ruler.hlo import estimated_cycles
from collective_einsum.ruler.replay import table


class Dot(NamedTuple):
    """The dtypes of a dot's operands, and its precision."""

    lhs_dtype: DTypeLike
    rhs_dtype: DTypeLike
    precision: lax.Precision | None = None


DOTS = {
    "bf16": Dot(jnp.bfloat16, jnp.bfloat16),
    "f32 default": Dot(jnp.float32, jnp.float32),
    "f32 high": Dot(jnp.float32, jnp.float32, lax.Precision.HIGH),
    "f32 highest": Dot(jnp.float32, jnp.float32, lax.Precision.HIGHEST),
    "bf16 x f32 highest": Dot(jnp.bfloat16, jnp.float32, lax.Precision.HIGHEST),
    "int8": Dot(jnp.int8, jnp.int8),
    "bf16 x int8": Dot(jnp.bfloat16, jnp.int8),
    "f16": Dot(jnp.float16, jnp.float16),
    "f8e4m3fn": Dot(jnp.float8_e4m3fn, jnp.float8_e4m3fn),
}


def dot_cycles(slice_: Target, dot: Dot, rows: int, contracted: int, columns: int) -> int:
    """The compiler's estimate, in cycles, of a dot of [rows, contracted] and [contracted, columns]."""
    integers = all(jnp.issubdtype(dtype, jnp.integer) for dtype in dot[:2])
    sums, result = (jnp.int32, jnp.int32) if integers else (jnp.float32, jnp.bfloat16)

    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        if not integers:
            wide = x.dtype if w.dtype == jnp.int8 else jnp.promote_types(x.dtype, w.dtype)
            x, w = x.astype(wide), w.astype(wide)
        y = jnp.einsum("me,ef->mf", x, w, precision=dot.precision, preferred_element_type=sums)
        return y.astype(result)

    mesh = slice_.mesh((len(slice_.devices),), ("x",))
    everywhere = NamedSharding(mesh, P())
    shapes = ((rows, contracted), dot.lhs_dtype), ((contracted, columns), dot.rhs_dtype)
    arrays = [jax.ShapeDtypeStruct(s, dtype, sharding=everywhere) for s, dtype in shapes]
    return estimated_cycles(slice_.compile(product, *arrays).as_text() or "")


def cycles_per_row(
    slice_: Target, dot: Dot, rows: int = 4096, contracted: int = 4608, columns: int = 4608
) -> float:
    """Cycles of each further row between `rows` and 2 * `rows`, which leaves out any fixed cost."""
    few, many = (dot_cycles(slice_, dot, n, contracted, columns) for n in (rows, 2 * rows))
    return (many - few) / rows


def main(name: str) -> None:
    """Prints the table of a slice, such as "v4:2x2x1"."""
    slice_ = target(name)
    chip, size = slice_.chip, 4608
    if chip is None:
        raise ValueError(f"{name!r} is no TPU slice; give one, such as 'v4:2x2x1'")
    cycles = {label: cycles_per_row(slice_, dot) for label, dot in DOTS.items()}
    flops = 2 * size**2 * chip.clock_hz
    rows = [
        (label, f"{n:.1f}", f"{n / cycles['bf16']:.2f}", f"{flops / n / 1e12:.0f}")
        for label, n in cycles.items()
    ]
    print(f"Dots of [M, {size}] x [{size}, {size}] on {chip.name}, M from 4096 to 8192.")
    print(f"Predicted by the compiler: {versions()}.\n")
    print(table(("dtypes", "cycles a row", "relative", "Tflop/s"), rows))
    print("\nrelative: cycles over those of bf16. Tflop/s: at the chip's clock.")


if __name__ == "__main__":
    main(*sys.argv[1:])
