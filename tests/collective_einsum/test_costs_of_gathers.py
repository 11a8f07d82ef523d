"""The cost model of einsums behind an all-gather, against replayed programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.cost.choice import WORTHWHILE, WORTHWHILE_WIDENED
from collective_einsum.cost.ranking import _worthwhile
from collective_einsum.cost.workload import Estimate, Workload, workload
from collective_einsum.ops.einsum_op import EinsumCollective, Operation

WHOLE = Schedule("blocking")
LATENCY = Schedule("ring", "latency")
ONE_CHUNK = Schedule("chunked")
BF16, INT8 = jnp.bfloat16, "int8"
SIZES = {ce.TPU_V6E: {"x": 4, "y": 4}, ce.TPU_V5P: {"x": 4, "y": 4, "z": 4}}
SIZES[ce.TPU_V4] = SIZES[ce.TPU_V5P]

# On a chip, gathers over mesh axes, local shapes [m, e] and [e, f], the dtype of the weights, and
# microseconds under a schedule as `python -m bench collectives --full` replays them, libtpu 0.0.50.1.
REPLAYED = [
    # Of two shards that arrive, v5p copies the second into on-chip memory.
    (ce.TPU_V5P, "x", (2048, 1152), (4608, 4608), "bf16", LATENCY, 298.1),
    (ce.TPU_V5P, "x", (4096, 1152), (4608, 4608), "bf16", LATENCY, 548.7),
    # The dot reads what lax's all-gather left longer than what permutes brought, as far as this fits.
    (ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), "bf16", WHOLE, 665.8),
    (ce.TPU_V6E, "y", (2048, 1152), (4608, 18432), "bf16", ONE_CHUNK, 606.0),
    (ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), "bf16", WHOLE, 2632.5),
    (ce.TPU_V6E, "y", (8192, 1152), (4608, 18432), "bf16", ONE_CHUNK, 3107.6),
    # The copy of int8 weights overlaps the gather over z, and then what is left of it the first hop.
    (ce.TPU_V4, "yz", (256, 288), (4608, 4608), INT8, LATENCY, 93.7),
]


def _seconds(
    chip: ce.Chip,
    axes: str,
    lhs: tuple[int, int],
    rhs: tuple[int, int],
    weights: str,
    schedule: Schedule,
) -> float:
    w: jax.ShapeDtypeStruct | ce.Quantized = jax.ShapeDtypeStruct(rhs, BF16)
    if weights == INT8:
        scales = jax.ShapeDtypeStruct((1, rhs[1]), jnp.float32)
        w = ce.Quantized(jax.ShapeDtypeStruct(rhs, jnp.int8), scales)
    choice = ce.choose_schedule(
        "me,ef->mf",
        jax.ShapeDtypeStruct(lhs, BF16),
        w,
        axis_name=tuple(axes),
        gather="e",
        axis_size=SIZES[chip],
        chip=chip,
    )
    return next(row.seconds for row in choice.rows if row.schedule == schedule)


@pytest.mark.parametrize(
    ("chip", "axes", "lhs", "rhs", "weights", "schedule", "replayed"),
    REPLAYED,
    ids=[f"{chip.name}-{lhs[0]}-{schedule}" for chip, _, lhs, _, _, schedule, _ in REPLAYED],
)
def test_predictions_are_near_replays(
    chip: ce.Chip,
    axes: str,
    lhs: tuple[int, int],
    rhs: tuple[int, int],
    weights: str,
    schedule: Schedule,
    replayed: float,
) -> None:
    seconds = _seconds(chip, axes, lhs, rhs, weights, schedule)
    assert seconds * 1e6 == pytest.approx(replayed, rel=0.1)


def test_one_direction_has_no_second_shard() -> None:
    """Replayed on v5p with 8192 rows, 1060 us in both directions and 1144 us in one."""
    case = (ce.TPU_V5P, "x", (8192, 1152), (4608, 4608), "bf16")
    both, one = (_seconds(*case, Schedule("ring", way)) for way in ("latency", "unidirectional"))
    assert both < 0.95 * one


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
