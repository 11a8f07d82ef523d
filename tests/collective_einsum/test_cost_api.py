"""The cost functions that other packages build on."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import collective_einsum as ce
from collective_einsum import cost

V4, V5E = ce.TPU_V4, ce.TPU_V5E
BF16 = jnp.bfloat16
MB = 1e6


def test_an_all_gather_sends_all_but_the_own_shard_over_all_links() -> None:
    ring = cost.all_gather_seconds(V4, (4,), 8 * MB)
    latency = 2 * V4.hop_seconds + V4.collective_seconds
    assert ring == pytest.approx(8 * MB * 3 / 4 / (2 * V4.link_bandwidth) + latency)
    # On v5e four chips are a line: one link, and twice as far to the last chip.
    line = cost.all_gather_seconds(V5E, (4,), 8 * MB)
    latency = 3 * V5E.hop_seconds + V5E.collective_seconds
    assert line == pytest.approx(8 * MB * 3 / 4 / V5E.link_bandwidth + latency)
    assert cost.all_gather_seconds(V4, (1, 1), 8 * MB) == 0
    assert cost.all_gather_seconds(V4, (4, 4), 8 * MB) < ring


def test_an_all_reduce_is_both_at_one_fixed_cost() -> None:
    once = cost.all_gather_seconds(V4, (4, 2), MB)
    both = cost.all_reduce_seconds(V4, (4, 2), MB)
    assert both == pytest.approx(2 * once - V4.collective_seconds)
    assert cost.all_reduce_seconds(V4, (1,), MB) == 0


def test_a_reduce_scatter_takes_as_long() -> None:
    for sides in ((4,), (4, 4), (2, 8)):
        assert cost.reduce_scatter_seconds(V4, sides, MB) == cost.all_gather_seconds(V4, sides, MB)


def test_an_all_to_all_is_bounded_by_the_middle_of_the_longest_axis() -> None:
    ring = cost.all_to_all_seconds(V4, (8,), 8 * MB)
    fixed = V4.collective_seconds
    assert ring == pytest.approx(8 * MB * 8 / 8 / V4.link_bandwidth + 4 * V4.hop_seconds + fixed)
    line = cost.all_to_all_seconds(V5E, (8,), 8 * MB)
    assert line == pytest.approx(8 * MB * 8 / 4 / V5E.link_bandwidth + 7 * V5E.hop_seconds + fixed)
    sending = cost.all_to_all_seconds(V4, (4, 8), 8 * MB) - 6 * V4.hop_seconds
    assert sending == pytest.approx(ring - 4 * V4.hop_seconds)


def test_a_matmul_takes_the_longer_of_arithmetic_and_memory() -> None:
    """By the data sheet; `test_observations` has what compilers were observed to make of it."""
    chip = dataclasses.replace(V4, observed="")
    few, many = (
        cost.matmul_seconds(chip, cost.Dot(rows=m, contracted=4096, columns=4096))
        for m in (8, 8192)
    )
    streaming = 2 * 4096**2 / (chip.hbm_efficiency * chip.hbm_bandwidth)
    assert few == pytest.approx(streaming + chip.hbm_fill_seconds, rel=0.02)
    assert many == pytest.approx(2 * 8192 * 4096**2 / chip.bf16_flops, rel=0.02)


def test_slower_chips_take_longer_for_what_bounds_a_matmul() -> None:
    """Also where a compiler was observed: its factors hold for the data sheet that is given."""
    large = cost.Dot(rows=8192, contracted=4096, columns=4096)
    slower = dataclasses.replace(V4, bf16_flops=V4.bf16_flops / 2)
    twice = 2 * cost.matmul_seconds(V4, large)
    assert cost.matmul_seconds(slower, large) == pytest.approx(twice, rel=0.02)
    small = cost.Dot(rows=8, contracted=4096, columns=4096)
    slower = dataclasses.replace(V4, hbm_bandwidth=V4.hbm_bandwidth / 2)
    assert cost.matmul_seconds(slower, small) > 1.8 * cost.matmul_seconds(V4, small)


@pytest.mark.parametrize(
    ("spec", "gather", "scatter"),
    [
        ("me,ef->mf", ("e", ("x",)), None),
        ("me,ef->mf", None, ("f", ("y", "z"))),
        ("me,ef->mf", ("m", ("y", "z")), ("m", ("x",))),
    ],
)
def test_the_ranking_is_that_of_choose_schedule(spec: str, gather: Any, scatter: Any) -> None:
    sizes = {"x": 4, "y": 2, "z": 2}
    lhs, rhs = jax.ShapeDtypeStruct((512, 1024), BF16), jax.ShapeDtypeStruct((1024, 2048), BF16)
    if gather == ("e", ("x",)):
        lhs = jax.ShapeDtypeStruct((512, 256), BF16)
    ranked = cost.rank_einsum(
        spec,
        lhs,
        [rhs],
        gather=gather,
        scatter=scatter,
        axis_sizes=sizes,
        chip=V4,
        result_dtype=BF16,
        wire_dtype=BF16,
    )
    chosen = ce.choose_schedule(
        spec,
        lhs,
        rhs,
        gather=gather and gather[0],
        gather_axis_name=gather and gather[1],
        scatter=scatter and scatter[0],
        scatter_axis_name=scatter and scatter[1],
        axis_size=sizes,
        chip=V4,
    )
    assert ranked == chosen
    assert ranked.schedule == chosen.schedule


def test_every_public_function_says_what_it_takes() -> None:
    for name in cost.__all__:
        value = getattr(cost, name)
        assert not callable(value) or value.__doc__, name
