"""The sizes that batches, steps and caches are padded to."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from layouts import PALM_540B, BatchSharded, HeadSharded, Partitioning, WeightStationary2D
from layouts.cost.layer_items import Load
from layouts.cost.workload import padded_load
from layouts.models.named_models import TINY_GROUPED
from layouts.partitionings.padded_sizes import (
    batch_multiple,
    padded_batch,
    padded_capacity,
    padded_length,
)

from .arrangements import ATTENTIONS, BY_POSITION, FEEDFORWARDS

CUBE = {"x": 2, "y": 2, "z": 2}
POD = {"x": 4, "y": 4, "z": 4}
OF_TWELVE = dataclasses.replace(TINY_GROUPED, d_model=48, d_ff=96, heads=12, kv_heads=4)


@pytest.mark.parametrize(
    ("plan", "sizes", "batch", "padded"),
    [
        (Partitioning(WeightStationary2D(), BatchSharded()), CUBE, 3, 8),
        (Partitioning(WeightStationary2D(), BatchSharded()), POD, 500, 512),
        (Partitioning(WeightStationary2D(), BatchSharded(("z",))), CUBE, 3, 4),
        (Partitioning(WeightStationary2D(), HeadSharded()), CUBE, 3, 3),
        (Partitioning(WeightStationary2D(by_batch=True), HeadSharded()), POD, 1, 16),
        # 7 and 9 rows of each chip would lie across tiles.
        (Partitioning(WeightStationary2D(by_batch=True), HeadSharded()), POD, 100, 128),
        (Partitioning(WeightStationary2D(by_batch=True), HeadSharded()), POD, 130, 256),
        (Partitioning(WeightStationary2D(by_batch=True), HeadSharded()), POD, 33, 64),
        # As would 68 rows, and 3, that are cut over x alone.
        (
            Partitioning(WeightStationary2D(by_batch=True, all_reduce=True), BatchSharded(("z",))),
            POD,
            257,
            288,
        ),
        (
            Partitioning(WeightStationary2D(by_batch=True, all_reduce=True), HeadSharded()),
            POD,
            9,
            16,
        ),
        (
            Partitioning(WeightStationary2D(by_batch=True, all_reduce=True), HeadSharded()),
            POD,
            5,
            8,
        ),
        # Of 2, which cuts rows inside a layer, and 3, which cut them between layers.
        (
            Partitioning(WeightStationary2D(by_batch=True), HeadSharded()),
            {"x": 2, "y": 1, "z": 3},
            4,
            6,
        ),
    ],
)
def test_a_batch_divides_over_all_that_shards_it(
    plan: Partitioning, sizes: dict[str, int], batch: int, padded: int
) -> None:
    config = PALM_540B if sizes == POD else OF_TWELVE
    assert padded_batch(batch, config, plan, sizes) == padded


def test_what_divides_stays() -> None:
    for layout, attention in itertools.product(FEEDFORWARDS, ATTENTIONS):
        plan = Partitioning(layout, attention)
        for batch in (8, 16, 64):
            assert padded_batch(batch, TINY_GROUPED, plan, CUBE) == batch
        assert 8 % batch_multiple(TINY_GROUPED, plan, CUBE) == 0
        assert padded_length(1, TINY_GROUPED, plan, CUBE) == 1


def test_a_short_prompt_is_hardly_padded() -> None:
    plan = Partitioning(WeightStationary2D(), HeadSharded())
    lengths = (1, 2, 3, 5, 8, 13, 15, 17, 31, 33, 63, 65, 101, 127, 129, 2047, 4097)
    found = [padded_length(new, PALM_540B, plan, POD) for new in lengths]
    assert found == [1, 2, 3, 5, 8, 13, 15, 18, 32, 36, 64, 72, 104, 128, 136, 2048, 4104]
    for new in range(1, 4101):
        assert new <= padded_length(new, PALM_540B, plan, POD) <= new * 9 / 8


def test_positions_divide_where_they_are_cut() -> None:
    plan = Partitioning(BY_POSITION, HeadSharded())
    for new in range(1, 70):
        found = padded_length(new, PALM_540B, plan, POD)
        assert found % 64 == 0
        assert new <= found < new + 64
        found = padded_length(new, OF_TWELVE, plan, {"x": 1, "y": 3, "z": 1})
        assert found % 3 == 0
        assert found >= new


def test_rows_of_chips_that_share_positions_are_whole_tiles() -> None:
    """Of 16 chips; fewer than 32 rows each are not padded by a quarter."""
    plan = Partitioning(BY_POSITION, HeadSharded())
    lengths = (129, 257, 320, 513, 577, 641, 704, 1000, 1025, 2049)
    found = [padded_length(new, PALM_540B, plan, POD) for new in lengths]
    assert found == [192, 320, 320, 640, 640, 768, 768, 1024, 1152, 2304]
    for new in range(1, 4101):
        assert new <= padded_length(new, PALM_540B, plan, POD) < max(64 + new, 1.25 * new)


def test_a_capacity_is_as_large_as_asked_for_and_hardly_larger() -> None:
    for positions in range(1, 3000):
        found = padded_capacity(positions)
        assert positions <= found < positions + 32
        assert padded_capacity(found) == found
    assert padded_capacity(10_700) == 10_720


def test_a_load_is_padded_as_the_decoder_pads() -> None:
    plan = Partitioning(WeightStationary2D(), BatchSharded())
    found = padded_load(Load(500, 1, 2047), PALM_540B, plan, POD)
    assert (found.batch, found.new, found.past) == (512, 1, 2048)
    found = padded_load(Load(3, 2047, 0, 1, 1), PALM_540B, plan, POD)
    assert (found.batch, found.new, found.past, found.weight_bytes) == (64, 2048, 0, 1)
