"""The paper's closed forms, exactly."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layouts import paper_closed_forms

SIZES = {"x": 4, "y": 4, "z": 4}
E, F = 16384, 65536


def test_figure_3_volumes() -> None:
    gathered = [
        paper_closed_forms.weight_gathered(2048, E, F, SIZES, axes) for axes in ("x", "xy", "xyz")
    ]
    found = [paper_closed_forms.weight_stationary_2d(2048, E, F, SIZES), *gathered]
    assert [round(each / 1e9, 4) for each in found] == [0.0671, 0.302, 1.0821, 4.295]


def test_figure_3_crossovers() -> None:
    assert paper_closed_forms.crossovers(E, F, SIZES) == {"X": 16_384, "XY": 65_536, "XYZ": 786_432}


@given(st.integers(0, 2**21))
def test_a_crossover_is_where_the_volumes_meet(tokens: int) -> None:
    stationary = paper_closed_forms.weight_stationary_2d(tokens, E, F, SIZES)
    x, xy, xyz = (
        paper_closed_forms.weight_gathered(tokens, E, F, SIZES, axes)
        for axes in (("x",), ("x", "y"), ("x", "y", "z"))
    )
    at = paper_closed_forms.crossovers(E, F, SIZES)
    assert (x < stationary) == (tokens > at["X"])
    assert (xy < x) == (tokens > at["XY"])
    assert (xyz < xy) == (tokens > at["XYZ"])


def test_2d_beats_1d_from_16_chips() -> None:
    """Section 3.2.2: where sqrt(n) > F/E."""
    cube = {"x": 4, "y": 4, "z": 4}
    assert paper_closed_forms.weight_stationary_1d(1, E) > paper_closed_forms.weight_stationary_2d(
        1, E, F, cube
    )
    small = {"x": 1, "y": 2, "z": 4}
    assert paper_closed_forms.weight_stationary_1d(1, E) < paper_closed_forms.weight_stationary_2d(
        1, E, F, small
    )


@pytest.mark.parametrize("chips", [16, 64, 256])
def test_the_best_x_is_half_the_root_of_chips(chips: int) -> None:
    best = paper_closed_forms.best_x(chips, E, 4 * E)
    assert best == math.sqrt(chips) / 2

    def sent(x: float) -> float:
        return E / x + 4 * E * x / chips

    assert sent(best) < min(sent(best * 1.01), sent(best / 1.01))


def test_the_best_gather_is_where_weights_and_activations_cost_the_same() -> None:
    tokens, chips = 2**16, 64
    n = paper_closed_forms.best_gathered(tokens, chips, F)
    assert 2 * E * F * n / chips == pytest.approx(2 * tokens * E / n)
