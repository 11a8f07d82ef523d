"""Batches, prompts and caches that no tile divides, compiled for TPU v4: what they cost beside the next
sizes that tiles do."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest

import layouts
from bench.decoder_suite.layers import mesh_of, outside_layers
from bench.decoder_suite.phases import split
from collective_einsum.ruler.replay.simulation import replay
from layouts.planning.defaults import default_reader

pytestmark = pytest.mark.tpu

SLICE = "v4:4x4x4"
# Of few layers, since a layer's cost is asked for: all are one loop.
CONFIG = dataclasses.replace(layouts.PALM_540B, layers=4)


@functools.cache
def layers_seconds(phase: str, batch: int, positions: int) -> float:
    """Of a step's layers, under the default plan of the whole model."""
    whole, mesh = layouts.PALM_540B, mesh_of(SLICE)
    how: dict[str, Any] = {"batch": batch, "unrolled": False}
    if phase == "decode":
        plan = layouts.default_decode(whole, mesh, batch, positions)
        lowered = layouts.lower_decode_step(CONFIG, mesh, context=positions, plan=plan, **how)
    else:
        plan = default_reader(whole, mesh, batch, positions, positions)
        lowered = layouts.lower_prefill(CONFIG, mesh, length=positions, plan=plan, **how)
    timeline = replay(lowered.compile(), mesh)
    return sum(split(timeline).values()) - sum(split(outside_layers(timeline)).values())


@pytest.mark.parametrize(
    ("batch", "larger", "context"),
    [(257, 320, 2048), pytest.param(300, 512, 512, marks=pytest.mark.exhaustive)],
)
def test_a_batch_costs_what_a_larger_one_does(batch: int, larger: int, context: int) -> None:
    """Of 272 rows, a layer takes 481 us, as collectives cut them between tiles; of 320, 433. At a
    context of 512, of 320 rows, it takes 799 us where halves of a weight are copied before their dots.
    """
    one, other = (layers_seconds("decode", rows, context) for rows in (batch, larger))
    assert one < 1.05 * other


@pytest.mark.parametrize(("length", "longer"), [(5, 8)])
def test_a_short_prompt_costs_less_than_a_longer_one(length: int, longer: int) -> None:
    """As it is hardly padded."""
    assert layers_seconds("prefill", 64, length) < 0.9 * layers_seconds("prefill", 64, longer)


@pytest.mark.parametrize(("length", "longer"), [(641, 768)])
def test_a_prompt_costs_no_more_than_one_that_fills_tiles(length: int, longer: int) -> None:
    """Of one sequence, whose positions chips share: those of 704 take 812 us a layer, of 768 744."""
    assert layers_seconds("prefill", 1, length) < 1.03 * layers_seconds("prefill", 1, longer)


@pytest.mark.parametrize(("positions", "more"), [(2049, 2112)])
def test_a_capacity_costs_no_more_than_a_larger_one(positions: int, more: int) -> None:
    """Which the tiles of a TPU's lanes divide."""
    assert layers_seconds("decode", 64, positions) < 1.03 * layers_seconds("decode", 64, more)
