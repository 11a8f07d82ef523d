"""The price of a dot by its dtypes and precision."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import collective_einsum as ce
from collective_einsum.chips import peak_flops
from collective_einsum.cost import dot_flops

BF16, F32, FP8 = jnp.bfloat16, jnp.float32, jnp.float8_e4m3fn
HIGH, HIGHEST = lax.Precision.HIGH, lax.Precision.HIGHEST

CHIPS = (ce.TPU_V4, ce.TPU_V5E, ce.TPU_7X)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """The dtypes of a dot's operands and its precision."""

    lhs: Any
    rhs: Any
    precision: Any = None


# How many bf16 dots each is priced as at the peaks, on v4, on v5e and on TPU7x.
FACTORS = {
    Operands(lhs=F32, rhs=F32): (1, 1, 1.8),
    Operands(lhs=F32, rhs=F32, precision=HIGH): (3, 3, 3.5),
    Operands(lhs=F32, rhs=F32, precision=HIGHEST): (6, 6, 5.7),
    Operands(lhs=BF16, rhs=F32, precision=HIGHEST): (3, 3, 3.5),
    Operands(lhs=jnp.int8, rhs=jnp.int8): (1, 0.5, 1),
    Operands(lhs=BF16, rhs=jnp.int8): (1, 1, 1),
    Operands(lhs=jnp.float16, rhs=jnp.float16): (1, 1, 1),
    Operands(lhs=FP8, rhs=FP8): (1, 1, 0.5),
}


@pytest.mark.parametrize("operands", FACTORS, ids=str)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_a_dot_is_priced_by_its_dtypes(chip: ce.Chip, operands: Operands) -> None:
    factor = FACTORS[operands][CHIPS.index(chip)]
    asked = (operands.lhs, operands.rhs, operands.precision)
    assert chip.bf16_flops / peak_flops(chip, *asked) == pytest.approx(factor, rel=0.03)
    # Without observations a large dot runs at these peaks.
    unobserved = dataclasses.replace(chip, observed="")
    assert dot_flops(unobserved, *asked) == pytest.approx(peak_flops(chip, *asked), rel=0.01)


def test_precision_in_all_its_spellings() -> None:
    v4 = ce.TPU_V4
    highest: list[Any] = ["highest", "float32", HIGHEST, (HIGHEST, None), ("default", "highest")]
    for precision in highest:
        assert peak_flops(v4, F32, F32, precision) == v4.f32_flops
    for precision in ("high", "bfloat16_3x", HIGH, lax.DotAlgorithmPreset.BF16_BF16_F32_X3):
        assert peak_flops(v4, F32, F32, precision) == v4.f32_high_flops
    for precision in (None, "default", "fastest", "bfloat16", lax.Precision.DEFAULT):
        assert peak_flops(v4, F32, F32, precision) == v4.f32_default_flops
    three, exact = (
        lax.DotAlgorithm(dtype, dtype, F32, num_primitive_operations=count)
        for dtype, count in ((BF16, 3), (F32, 1))
    )
    assert peak_flops(v4, F32, F32, three) == v4.f32_high_flops
    assert peak_flops(v4, F32, F32, exact) == v4.f32_flops
    assert peak_flops(v4, BF16, F32, HIGHEST) == v4.f32_high_flops
    assert peak_flops(v4, BF16, BF16, HIGHEST) == v4.bf16_flops


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
