"""The price of a dot by its dtypes, against what the TPU's compiler makes of such dots."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax

import collective_einsum as ce
from bench.dot_rates import DOTS, cycles_per_row
from collective_einsum.chips import dot_flops
from collective_einsum.cost import matmul_seconds
from collective_einsum.ruler.compile import target

pytestmark = pytest.mark.tpu

BF16, F32 = jnp.bfloat16, jnp.float32
HIGH, HIGHEST = lax.Precision.HIGH, lax.Precision.HIGHEST

CHIPS = (ce.TPU_V4, ce.TPU_V5E, ce.TPU_7X)

# How many bf16 dots each is priced as, on v4, on v5e and on TPU7x.
FACTORS = {
    "f32 default": (1, 1, 1.8),
    "f32 high": (3, 3, 3.5),
    "f32 highest": (6, 6, 5.7),
    "bf16 x f32 highest": (3, 3, 3.5),
    "int8": (1, 0.5, 1),
    "bf16 x int8": (1, 1, 1),
    "f16": (1, 1, 1),
    "f8e4m3fn": (1, 1, 0.5),
}


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: chip.name)
def test_a_dot_is_priced_by_its_dtypes(chip: ce.Chip, name: str) -> None:
    factor = FACTORS[name][CHIPS.index(chip)]
    lhs, rhs, precision = DOTS[name]
    rate = dot_flops(chip, lhs, rhs, precision)
    assert chip.dot_efficiency * chip.bf16_flops / rate == pytest.approx(factor, rel=0.03)
    seconds, plain = (
        matmul_seconds(chip, 1e13, (1e6, 1e6), 1e6, lhs_dtype=a, rhs_dtype=b, precision=p)
        for a, b, p in (DOTS[name], DOTS["bf16"])
    )
    assert seconds / plain == pytest.approx(factor, rel=0.03)


@pytest.mark.parametrize("spec", ["v4:2x2x1", "v5e:2x2"])
def test_the_compiler_agrees(spec: str) -> None:
    """Of cycles that each further row takes, as a fraction of those of bf16."""
    slice_, size = target(spec), {"rows": 1024, "contracted": 2048, "columns": 512}
    plain = cycles_per_row(slice_, DOTS["bf16"], **size)
    for name in ("f32 high", "f32 highest", "int8"):
        factor = FACTORS[name][spec.startswith("v5e")]
        assert cycles_per_row(slice_, DOTS[name], **size) / plain == pytest.approx(
            factor, rel=0.25
        ), name


def test_precision_in_all_its_spellings() -> None:
    v4 = ce.TPU_V4
    highest: list[Any] = ["highest", "float32", HIGHEST, (HIGHEST, None), ("default", "highest")]
    for precision in highest:
        assert dot_flops(v4, F32, F32, precision) == v4.dot_efficiency * v4.f32_flops
    for precision in ("high", "bfloat16_3x", HIGH, lax.DotAlgorithmPreset.BF16_BF16_F32_X3):
        assert dot_flops(v4, F32, F32, precision) == v4.dot_efficiency * v4.f32_high_flops
    for precision in (None, "default", "fastest", "bfloat16", lax.Precision.DEFAULT):
        assert dot_flops(v4, F32, F32, precision) == v4.dot_efficiency * v4.f32_default_flops
    three, exact = (
        lax.DotAlgorithm(dtype, dtype, F32, num_primitive_operations=count)
        for dtype, count in ((BF16, 3), (F32, 1))
    )
    assert dot_flops(v4, F32, F32, three) == v4.dot_efficiency * v4.f32_high_flops
    assert dot_flops(v4, F32, F32, exact) == v4.dot_efficiency * v4.f32_flops
    assert dot_flops(v4, BF16, F32, HIGHEST) == v4.dot_efficiency * v4.f32_high_flops
    assert dot_flops(v4, BF16, BF16, HIGHEST) == v4.dot_efficiency * v4.bf16_flops


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
