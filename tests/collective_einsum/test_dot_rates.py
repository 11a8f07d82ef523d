"""The price of a dot by its dtypes, against what the TPU's compiler makes of such dots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import collective_einsum as ce
from collective_einsum.chips import peak_flops
from collective_einsum.cost import matmul_seconds
from collective_einsum.ruler.compile import target
from collective_einsum.ruler.hlo import parse as hlo

BF16, F16, F32, INT8 = map(jnp.dtype, (jnp.bfloat16, jnp.float16, jnp.float32, jnp.int8))
FP8 = jnp.dtype(jnp.float8_e4m3fn)
HIGH, HIGHEST = lax.Precision.HIGH, lax.Precision.HIGHEST


def cycles(slice_: Any, lhs: Any, rhs: Any, precision: Any = None, *, rows: int) -> int:
    """The compiler's own estimate of a dot of [rows, 2048] and [2048, 512]."""
    sums = jnp.int32 if jnp.issubdtype(lhs, jnp.integer) else jnp.float32

    def dot(x: jax.Array, w: jax.Array) -> jax.Array:
        w = w.astype(x.dtype) if jnp.issubdtype(w.dtype, jnp.integer) else w
        y = jnp.einsum("me,ef->mf", x, w, precision=precision, preferred_element_type=sums)
        return y.astype(jnp.bfloat16) if sums == jnp.float32 else y

    mesh = slice_.mesh((4,), ("x",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    shapes = [((rows, 2048), lhs), ((2048, 512), rhs)]
    arrays = [jax.ShapeDtypeStruct(s, dtype, sharding=everywhere) for s, dtype in shapes]
    text = slice_.compile(dot, *arrays).as_text()
    return sum(i.estimated_cycles or 0 for i in hlo.parse(text).entry)


# Operands and precision, and how many bf16 dots they are priced as on v4 and on v5e.
DOTS = {
    "f32": (F32, F32, None, 1, 1),
    "f32 high": (F32, F32, HIGH, 3, 3),
    "f32 highest": (F32, F32, HIGHEST, 6, 6),
    "int8": (INT8, INT8, None, 1, 0.5),
    "int8 weights": (BF16, INT8, None, 1, 1),
    "f16": (F16, F16, None, 1, 1),
}


@pytest.mark.parametrize("name", DOTS)
@pytest.mark.parametrize("chip", [ce.TPU_V4, ce.TPU_V5E], ids=["v4", "v5e"])
def test_a_dot_is_priced_by_its_dtypes(chip: ce.Chip, name: str) -> None:
    lhs, rhs, precision, *factors = DOTS[name]
    factor = factors[0 if chip is ce.TPU_V4 else 1]
    peak = peak_flops(chip, lhs, rhs, precision)
    assert chip.bf16_flops / peak == pytest.approx(factor)
    seconds = [
        matmul_seconds(chip, 1e13, (1e6, 1e6), 1e6, lhs_dtype=a, rhs_dtype=b, precision=p)
        for a, b, p in ((BF16, BF16, None), (lhs, rhs, precision))
    ]
    assert seconds[1] / seconds[0] == pytest.approx(factor, rel=0.01)


@pytest.mark.parametrize("spec", ["v4:2x2x1", "v5e:2x2"])
def test_the_compiler_agrees(spec: str) -> None:
    slice_ = target(spec)

    def slope(*dtypes: Any) -> int:
        """Cycles that 1024 further rows take: no fixed cost is in them."""
        return cycles(slice_, *dtypes, rows=2048) - cycles(slice_, *dtypes, rows=1024)

    plain = slope(BF16, BF16)
    for name in ("f32 high", "f32 highest", "int8"):
        lhs, rhs, precision, *factors = DOTS[name]
        factor = factors[0 if spec.startswith("v4") else 1]
        assert slope(lhs, rhs, precision) / plain == pytest.approx(factor, rel=0.25), name


def test_precision_in_all_its_spellings() -> None:
    v4 = ce.TPU_V4
    for precision in ("highest", "float32", HIGHEST, (HIGHEST, None), ("default", "highest")):
        assert peak_flops(v4, F32, F32, precision) == v4.f32_flops
    for precision in ("high", "bfloat16_3x", HIGH, lax.DotAlgorithmPreset.BF16_BF16_F32_X3):
        assert peak_flops(v4, F32, F32, precision) == v4.f32_high_flops
    for precision in (None, "default", "fastest", "bfloat16", lax.Precision.DEFAULT):
        assert peak_flops(v4, F32, F32, precision) == v4.f32_default_flops
    assert peak_flops(v4, BF16, F32, HIGHEST) == v4.f32_high_flops
    assert peak_flops(v4, BF16, BF16, HIGHEST) == v4.bf16_flops
    assert peak_flops(v4, FP8, FP8) == v4.bf16_flops


def test_a_schedule_is_chosen_by_the_price_of_its_dots() -> None:
    """An f32 einsum at the highest precision computes six times as long, and hides as much more."""

    def ranked(dtype: Any, precision: Any) -> ce.Choice:
        shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((2048, 1152), (4608, 4608))]
        with jax.default_matmul_precision(precision):
            return ce.choose_schedule(
                "mf,fe->me", *shapes, axis_name="x", gather="f", axis_size=4, chip="v4"
            )

    def blocking(choice: ce.Choice) -> float:
        return next(row.compute for row in choice.rows if row.schedule.kind == "blocking")

    plain, exact = ranked(F32, "default"), ranked(F32, "highest")
    assert blocking(exact) > 4 * blocking(plain)
    assert blocking(ranked(BF16, "highest")) == blocking(ranked(BF16, "default"))
