"""Memory passes that schedules add: what was observed of them, and what the cost model takes from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import collective_einsum as ce
from collective_einsum.chips import PassKind
from collective_einsum.chips.memory_passes import MemoryPasses, memory_passes
from collective_einsum.chips.observations import nearest
from tests.observed_chips import CHIPS, VERSIONS

KINDS: tuple[PassKind, ...] = (
    "add",
    "add int8",
    "add halves",
    "slice",
    "move",
    "exchange",
    "copy int8",
)
POINTS = ((10.0, 2.0), (30.0, 3.0), (50.0, 8.0))
THREE = MemoryPasses(
    bandwidth=1.0, points={"move": POINTS}, transposes_scatter=False, copies_during_hop=False
)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", CHIPS)
def test_every_kind_was_observed(name: str, version: str) -> None:
    seen = nearest(name, version)
    assert seen is not None
    assert {one.kind for one in seen.passes} == set(KINDS)
    for one in seen.passes:
        assert one.cycles > 0
        assert one.source == ("bundles" if one.kind.endswith("int8") else "estimate")
        if one.kind == "copy int8":
            assert one.lowered in ("", "during a hop"), one
        else:
            assert bool(one.lowered) == (one.kind == "slice"), one


@given(st.floats(0.1, 1e6))
def test_seconds_are_linear_between_what_was_observed(size: float) -> None:
    sizes, seconds = zip(*POINTS, strict=True)
    expected = np.interp(size, sizes, seconds) if size <= 50 else 8 + (size - 50) / 20 * 5
    assert THREE.seconds("move", size) == pytest.approx(expected)
    assert THREE.seconds("move", 3 * size, arrays=3) == pytest.approx(3 * expected)


def test_what_was_not_observed_costs_nothing() -> None:
    assert THREE.seconds("exchange", 100.0) == 0
    assert THREE.seconds("move", 0.0) == 0
    assert ce.H100.pass_seconds("move", 1e6) == 0
    assert not ce.H100.transposes_scatter
    assert ce.H100.vector_bandwidth == ce.H100.reached_hbm_bandwidth
    alone = dataclasses.replace(ce.TPU_V4, observed="")
    assert alone.pass_seconds("add", 1e6) == 0
    assert alone.vector_bandwidth == pytest.approx(0.87 * 1.2e12)


@pytest.mark.parametrize("name", CHIPS)
def test_an_observed_pass_takes_its_cycles(name: str) -> None:
    chip, passes = CHIPS[name], memory_passes(name)
    seen = chip.observations
    assert seen is not None
    assert passes is not None
    for one in seen.passes:
        seconds = one.cycles / seen.clock_hz
        if one.kind != "slice" or one.lowered == "all-reduce":
            assert chip.pass_seconds(one.kind, one.bytes) == pytest.approx(seconds)
    largest = max((one for one in seen.passes if one.kind == "add"), key=lambda one: one.bytes)
    rate = largest.bytes * seen.clock_hz / largest.cycles
    assert chip.vector_bandwidth == pytest.approx(rate)
    # Arrays that are added in on-chip memory may be faster than HBM.
    assert rate < 2 * chip.hbm_bandwidth


def test_matrix_units_of_256_transpose_scatters() -> None:
    transposing = {name for name, chip in CHIPS.items() if chip.transposes_scatter}
    assert transposing == {"v6e", "tpu7x"}


def test_some_compilers_copy_weights_while_a_hop_is_under_way() -> None:
    copying = {name for name, chip in CHIPS.items() if chip.copies_during_hop}
    assert copying == {"v4", "v5e", "tpu7x"}
    assert not ce.H100.copies_during_hop
