"""The cost model of einsums behind an all-gather, against replayed programs."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.cost.choice import WORTHWHILE, WORTHWHILE_WIDENED
from collective_einsum.cost.dots import work_dot
from collective_einsum.cost.ranking import _rank, _worthwhile
from collective_einsum.cost.workload import Estimate, Workload, workload
from collective_einsum.ops.einsum_op import EinsumCollective, Operation

WHOLE = Schedule("blocking")
LATENCY = Schedule("ring", "latency")
ONE_CHUNK, GATHERED = Schedule("chunked"), Schedule("chunked", "async")
TWO, FOUR, EIGHT = (Schedule("chunked", chunks=count, label="m") for count in (2, 4, 8))
BF16, INT8 = jnp.bfloat16, "int8"
SIZES = {ce.TPU_V6E: {"x": 4, "y": 4}, ce.TPU_V5P: {"x": 4, "y": 4, "z": 4}}
SIZES[ce.TPU_V5E] = SIZES[ce.TPU_V6E]
V4_BY_OPTIONS = ce.TPU_V4.under_options()
SIZES[ce.TPU_V4] = SIZES[V4_BY_OPTIONS] = SIZES[ce.TPU_V5P]


class Gather(NamedTuple):
    """A gather over mesh axes, local shapes [m, e] and [e, f], the weights' dtype, and a schedule."""

    chip: ce.Chip
    axes: str
    lhs: tuple[int, int]
    rhs: tuple[int, int]
    weights: str
    schedule: Schedule

    @property
    def seconds(self) -> float:
        """Predicted."""
        w: jax.ShapeDtypeStruct | ce.Quantized = jax.ShapeDtypeStruct(self.rhs, BF16)
        if self.weights == INT8:
            scales = jax.ShapeDtypeStruct((1, self.rhs[1]), jnp.float32)
            w = ce.Quantized(jax.ShapeDtypeStruct(self.rhs, jnp.int8), scales)
        choice = ce.choose_schedule(
            "me,ef->mf",
            jax.ShapeDtypeStruct(self.lhs, BF16),
            w,
            axis_name=tuple(self.axes),
            gather="e",
            axis_size=SIZES[self.chip],
            chip=self.chip,
        )
        return next(row.seconds for row in choice.rows if row.schedule == self.schedule)


# Microseconds as `python -m bench collectives --full` replays them, libtpu 0.0.50.1.
REPLAYED = [
    # Of two shards that arrive, v5p copies the second into on-chip memory.
    (Gather(ce.TPU_V5P, "x", (2048, 1152), (4608, 4608), "bf16", LATENCY), 298.1),
    (Gather(ce.TPU_V5P, "x", (4096, 1152), (4608, 4608), "bf16", LATENCY), 548.7),
    # A hop starts two dots before it must have arrived.
    (Gather(ce.TPU_V4, "x", (2048, 1152), (4608, 4608), "bf16", LATENCY), 395.7),
    # The dot reads what lax's all-gather left longer than what permutes brought, as far as this fits.
    (Gather(ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), "bf16", WHOLE), 665.8),
    (Gather(ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), "bf16", ONE_CHUNK), 606.0),
    (Gather(ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), "bf16", WHOLE), 2632.5),
    (Gather(ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), "bf16", ONE_CHUNK), 3107.6),
    # Chunks become the result in their dots, while the first hop of the next one's ring is under way.
    (Gather(ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), "bf16", TWO), 2218.6),
    (Gather(ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), "bf16", FOUR), 2154.4),
    (Gather(ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), INT8, TWO), 569.0),
    (Gather(ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), INT8, FOUR), 2096.4),
    (Gather(ce.TPU_V6E, "x", (2048, 4608), (18432, 4608), INT8, FOUR), 824.7),
    (Gather(ce.TPU_V6E, "x", (8192, 4608), (18432, 4608), "bf16", EIGHT), 3990.3),
    # A result that fits into on-chip memory is put together there, and copied.
    (Gather(ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), "bf16", TWO), 660.6),
    (Gather(ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), INT8, FOUR), 613.8),
    (Gather(ce.TPU_V6E, "y", (1024, 1152), (4608, 18432), INT8, TWO), 319.1),
    # The next chunk's first hop is under way before this chunk's dot: nothing hides it.
    (Gather(ce.TPU_V5E, "x", (2048, 4608), (18432, 4608), "bf16", TWO), 3339.5),
    # The copy of int8 weights overlaps the first hop.
    (Gather(ce.TPU_V4, "x", (256, 1152), (4608, 4608), INT8, LATENCY), 79.4),
    # One dot of all that lax's gather brings, 84 us, against a copy and four dots, 113 us.
    (Gather(V4_BY_OPTIONS, "yz", (512, 288), (4608, 4608), INT8, GATHERED), 117.6),
    (Gather(V4_BY_OPTIONS, "yz", (512, 288), (4608, 4608), INT8, LATENCY), 123.4),
]


@pytest.mark.parametrize(
    ("gather", "replayed"),
    REPLAYED,
    ids=[f"{gather.chip.name}-{gather.lhs[0]}-{gather.schedule}" for gather, _ in REPLAYED],
)
def test_predictions_are_near_replays(gather: Gather, replayed: float) -> None:
    assert gather.seconds * 1e6 == pytest.approx(replayed, rel=0.1)


def test_chunks_of_int8_weights_that_are_scattered_take_an_even_number_of_tiles() -> None:
    """Replayed on v6e: in four chunks of 384 rows 513 us, "blocking" 433 us; of 512 rows 511 and 574."""
    scatter = dataclasses.replace(
        BOTH_ENDS, gather=None, scatter=EinsumCollective(label="f", axes=("y",))
    )

    def padding(rows: int, weights: str) -> float:
        shapes = (
            jax.ShapeDtypeStruct((rows, 18432), BF16),
            jax.ShapeDtypeStruct((18432, 4608), jnp.dtype(weights)),
        )
        return work_dot(
            workload(scatter, shapes, ce.TPU_V6E, {"x": 4, "y": 4}), {"m": 0.25}
        ).padding

    assert padding(1536, INT8) == pytest.approx(512 / 384)
    assert padding(2048, INT8) == padding(1536, "bfloat16") == 1.0


def test_one_direction_has_no_second_shard() -> None:
    """Replayed on v5p with 8192 rows, 1060 us in both directions and 1144 us in one."""
    both, one = (
        Gather(ce.TPU_V5P, "x", (8192, 1152), (4608, 4608), "bf16", Schedule("ring", way)).seconds
        for way in ("latency", "unidirectional")
    )
    assert both < 0.95 * one


@pytest.mark.parametrize("rows", [256, 2048])
def test_a_copy_hides_one_gather_alone(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """On v4 the gather over z, 43 us with 2048 rows and 5 with 256, overlaps the copy of int8 weights,
    25 us; the first hop over y, which sends what it gathered, starts after both."""
    gather = Gather(V4_BY_OPTIONS, "yz", (rows, 288), (4608, 4608), INT8, LATENCY)
    during_a_hop = gather.seconds
    monkeypatch.setattr(ce.Chip, "copies_during_hop", False)
    _rank.cache_clear()
    before_it = gather.seconds
    _rank.cache_clear()
    assert during_a_hop == pytest.approx(before_it)


def test_halves_of_int8_shards_are_no_candidates() -> None:
    halves = Schedule("ring", "bidirectional")
    wide = Gather(ce.TPU_V4, "x", (256, 1152), (4608, 4608), "bf16", halves)
    assert wide.seconds > 0
    with pytest.raises(StopIteration):
        _ = wide._replace(weights=INT8).seconds


BOTH_ENDS = Operation(
    form="shared_lhs",
    lhs="me",
    rhs="ef",
    out="mf",
    gather=EinsumCollective(label="e", axes=("x",)),
    scatter=EinsumCollective(label="f", axes=("y",)),
    reduce=(),
    schedule=WHOLE,
    precision=None,
    accumulator=jnp.dtype(jnp.float32),
    dtype=jnp.dtype(BF16),
    sum_wire=jnp.dtype(BF16),
)


def _gain_asked(work: Workload, schedule: Schedule) -> float:
    row = Estimate(schedule=schedule, compute=0, communication=0, exposed=0, memory=0)
    return _worthwhile(work, row)


def test_int8_weights_ask_for_more_but_in_rings_of_a_gathers_whole_shards() -> None:
    shapes = jax.ShapeDtypeStruct((64, 512), BF16), jax.ShapeDtypeStruct((2048, 1024), jnp.int8)
    work = workload(BOTH_ENDS, shapes, ce.TPU_V4, {"x": 4, "y": 4})
    gathers = Schedule("ring", "latency", ring_of="gather")
    assert _gain_asked(work, gathers) == _gain_asked(work, ONE_CHUNK) == WORTHWHILE
    for schedule in (
        LATENCY,
        Schedule("ring", "bidirectional", ring_of="gather"),
        Schedule("chunked", chunks=2, label="m"),
    ):
        assert _gain_asked(work, schedule) == WORTHWHILE_WIDENED
    gather = dataclasses.replace(BOTH_ENDS, scatter=None)
    work = workload(gather, shapes, ce.TPU_V4, {"x": 4, "y": 4})
    assert _gain_asked(work, TWO) == WORTHWHILE
