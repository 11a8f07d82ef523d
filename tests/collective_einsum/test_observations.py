"""What compilers were observed to make of dots: the files, and what "auto" takes from them."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
from collective_einsum import cost
from collective_einsum.chips import DotObservation, Observations, nearest_version
from collective_einsum.chips.observations import Source, nearest
from collective_einsum.cost.dot_factors import Grid, _grids
from tests.observed_chips import CHIPS, VERSIONS

VERSION = VERSIONS[-1]
ONE = DotObservation(
    rows=8,
    contracted=256,
    columns=1152,
    lhs="bfloat16",
    rhs="int8",
    adds=False,
    scattered="",
    gathered=False,
    cycles=2349,
    source="bundles",
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CHIPS)
def test_every_tpu_was_observed(name: str, version: str) -> None:
    seen = nearest(name, version)
    assert seen is not None
    assert seen.compiler == f"libtpu {version}"
    assert seen.chip == CHIPS[name].name
    assert seen.clock_hz == CHIPS[name].clock_hz
    assert f"python -m bench calibrate --target {name}:" in seen.command
    for dot in seen.dots:
        # No dot exceeds the peak by much: clocks are derived from peaks that were rounded.
        rate = 2 * dot.rows * dot.contracted * dot.columns * seen.clock_hz / dot.cycles
        narrow = {dot.lhs, dot.rhs} != {"bfloat16"}
        peak = max(CHIPS[name].int8_ops, CHIPS[name].fp8_flops)
        assert rate < 1.05 * (peak if narrow else CHIPS[name].bf16_flops), dot


def test_a_file_is_read_as_it_was_written() -> None:
    seen = nearest("v4", VERSION)
    assert seen is not None
    changed = dataclasses.replace(seen, dots=(*seen.dots, ONE))
    assert Observations.from_json(changed.to_json()) == changed


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dots": [{"rows": 8}]}'])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no file of observations .* bench calibrate"):
        Observations.from_json(text)


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        ("0.0.50.1", "0.0.50.1"),
        ("0.0.51", "0.0.50.1"),
        ("0.0.50", "0.0.42.1"),
        ("0.0.9", "0.0.42.1"),
        ("1.0", "0.0.50.1"),
        (None, "0.0.50.1"),
    ],
)
def test_the_nearest_version_stands_for_others(installed: str | None, chosen: str) -> None:
    assert nearest_version(("0.0.50.1", "0.0.42.1"), installed) == chosen


def test_a_chip_says_which_compiler_was_observed() -> None:
    for name, chip in CHIPS.items():
        assert chip.observations is not None
        assert chip.observations.compiler.startswith("libtpu 0."), name
    assert ce.H100.observations is None


@pytest.mark.parametrize("name", CHIPS)
def test_an_observed_dot_takes_its_cycles(name: str) -> None:
    """Where it computes for longer than it waits for HBM."""
    chip = CHIPS[name]
    seen = chip.observations
    assert seen is not None
    large = [dot for dot in seen.dots if dot.rows == 2048 and dot.contracted == 4608]
    assert len(large) >= 4
    for dot in large:
        wide = jnp.float32 if dot.adds else jnp.bfloat16
        asked = cost.Dot(
            rows=dot.rows,
            contracted=dot.contracted,
            columns=dot.columns,
            result=jnp.dtype(wide),
            adds=dot.adds,
            scattered=dot.scattered,
            gathered=dot.gathered,
        )
        expected = dot.cycles / seen.clock_hz
        # A sum that does not stay on chip takes the time of its passes at least.
        assert cost.matmul_seconds(chip, asked) >= expected * 0.999
        if not dot.adds:
            assert cost.matmul_seconds(chip, asked) == pytest.approx(expected)


@pytest.mark.parametrize("source", ["measured", "estimate"])
def test_measured_dots_wait_for_hbm_as_long_as_they_were_timed(
    source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted ones no longer than chips were measured to read."""
    seen = nearest("v4", VERSION)
    assert seen is not None
    slow = tuple(
        dataclasses.replace(one, cycles=3 * one.cycles, source=source) for one in seen.dots
    )
    monkeypatch.setattr(
        "collective_einsum.chips.chip.observed", lambda _: dataclasses.replace(seen, dots=slow)
    )
    monkeypatch.setattr("collective_einsum.cost.dot_factors._grids", _grids.__wrapped__)
    dot = next(one for one in slow if one.rows == 8 and one.contracted == one.columns == 4608)
    seconds = cost.matmul_seconds(ce.TPU_V4, cost.Dot(rows=8, contracted=4608, columns=4608))
    timed = dot.cycles / seen.clock_hz
    read = 2 * 4608 * (4608 + 8) / (0.87 * 1.2e12) + 3e-6
    assert timed > 2 * read
    assert seconds == pytest.approx(timed if source == "measured" else read)


@pytest.mark.parametrize("name", CHIPS)
def test_more_rows_never_take_less(name: str) -> None:
    """By more than 10%: compilers choose other tiles for more rows."""
    kinds = ({}, {"adds": True}, {"gathered": True}, {"scattered": "whole"}, {"scattered": "ring"})
    for contracted, columns, kind in itertools.product((300, 4608), (1152, 9000), kinds):
        sizes = {"contracted": contracted, "columns": columns, **kind}
        seconds = [
            cost.matmul_seconds(CHIPS[name], cost.Dot(rows=rows, **sizes))
            for rows in (1, 8, 16, 64, 100, 200, 300, 512, 700, 1000, 1500, 2048, 4096, 10**5)
        ]
        for few, many in itertools.pairwise(seconds):
            assert many > 0.9 * few, (sizes, seconds)


def test_a_grid_is_linear_in_the_logarithms() -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=3)

    def value(sizes: tuple[float, ...]) -> float:
        return float(slopes @ np.log(sizes))

    grid = Grid.of({key: value(key) for key in itertools.product((8, 64, 100), (2, 5), (1, 9))})
    for _ in range(50):
        sizes = tuple(math.exp(x) for x in rng.uniform(np.log([8, 2, 1]), np.log([100, 5, 9])))
        assert grid.at(sizes) == pytest.approx(value(sizes))
    assert grid.at((1e6, 1, 3)) == pytest.approx(value((100, 2, 3)))


def test_a_grid_has_every_product() -> None:
    with pytest.raises(ValueError, match="observed dots are no grid"):
        Grid.of({(1, 1): 0.0, (1, 2): 0.0, (2, 1): 0.0})


def test_the_widths_of_both_operands_count() -> None:
    """bf16 x int8 and int8 x bf16 are one kind of dot, transposed."""
    bf16, int8 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.int8)
    one, other = (
        cost.Dot(rows=64, contracted=1152, columns=4608, lhs=bf16, rhs=int8),
        cost.Dot(rows=4608, contracted=1152, columns=64, lhs=int8, rhs=bf16),
    )
    for chip in CHIPS.values():
        assert cost.matmul_seconds(chip, one) == pytest.approx(cost.matmul_seconds(chip, other))


def test_chunks_of_int8_weights_in_a_scatters_ring_are_widened_in_other_code() -> None:
    """PaLM 540B's W_out on v6e:4x4, 64 rows, scattered over y: a layer's dots were replayed by their
    bundles, 103.3 us in a ring and 62.1 us whole (libtpu 0.0.50.1)."""
    dot = cost.Dot(
        rows=64,
        contracted=18432,
        columns=4608,
        lhs=jnp.dtype(jnp.bfloat16),
        rhs=jnp.dtype(jnp.int8),
        scattered="whole",
    )
    chunk = dataclasses.replace(dot, columns=dot.columns / 4, scattered="ring")
    whole, chunks = cost.matmul_seconds(ce.TPU_V6E, dot), 4 * cost.matmul_seconds(ce.TPU_V6E, chunk)
    assert whole == pytest.approx(62.1e-6, rel=0.1)
    assert chunks == pytest.approx(103.3e-6, rel=0.1)


def test_a_sum_beyond_the_observed_rows_is_as_large_as_it_is() -> None:
    """PaLM 540B's W_out on v5e:4x4, 8192 rows, gathered over x: a ring's first dot was replayed in
    2041 us and each of the next in 2857 us; its sums of 151 MB do not fit (libtpu 0.0.50.1)."""
    dot = cost.Dot(rows=8192, contracted=4608, columns=4608)
    first, next_ = (
        cost.matmul_seconds(ce.TPU_V5E, dataclasses.replace(dot, adds=adds))
        for adds in (False, True)
    )
    assert first == pytest.approx(2041e-6, rel=0.1)
    assert next_ == pytest.approx(2857e-6, rel=0.1)
