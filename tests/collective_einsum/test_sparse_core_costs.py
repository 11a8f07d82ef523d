"""The cost model on a chip whose SparseCores run lax's collectives, against replayed programs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import collective_einsum as ce
from collective_einsum import Schedule

SIZES = {"x": 4, "y": 4, "z": 8}
WHOLE = Schedule("blocking")


def _chunks(*sizes: int) -> Schedule:
    return Schedule("chunked", "async", chunks=sizes, label="m")


# Gathers over the mesh axes of tpu7x:4x4x4, local shapes [m, e] and [e, f], and microseconds under a
# schedule as `python -m bench collectives --full --target tpu7x:4x4x4` replays them, libtpu 0.0.50.1.
REPLAYED = [
    # The dots of both directions hide a hop.
    ("x", (8, 576), (2304, 4608), Schedule("ring", "latency"), 17.0),
    ("x", (64, 576), (2304, 4608), Schedule("ring", "latency"), 18.8),
    ("x", (256, 576), (2304, 4608), Schedule("ring", "latency"), 28.5),
    ("x", (512, 576), (2304, 4608), Schedule("ring", "bidirectional"), 45.7),
    # All chunks' gathers are under way at once.
    ("x", (2048, 576), (2304, 4608), _chunks(1, 2, 4), 130.4),
    ("yz", (256, 144), (4608, 2304), _chunks(1, 3), 44.5),
    ("yz", (2048, 144), (4608, 2304), _chunks(1, 3), 107.1),
    ("yz", (2048, 144), (4608, 2304), _chunks(1, 4, 11), 106.7),
    ("yz", (8192, 144), (4608, 2304), _chunks(1, 2, 4), 341.9),
    ("x", (512, 576), (2304, 4608), WHOLE, 51.3),
]


def _choice(axes: str, lhs: tuple[int, int], rhs: tuple[int, int]) -> ce.Choice:
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (lhs, rhs))
    return ce.choose_schedule(
        "me,ef->mf", x, w, axis_name=tuple(axes), gather="e", axis_size=SIZES, chip=ce.TPU_7X
    )


@pytest.mark.parametrize(("axes", "lhs", "rhs", "schedule", "replayed"), REPLAYED)
def test_predictions_are_near_replays(
    axes: str, lhs: tuple[int, int], rhs: tuple[int, int], schedule: Schedule, replayed: float
) -> None:
    rows = {row.schedule: row for row in _choice(axes, lhs, rhs).rows}
    assert rows[schedule].seconds * 1e6 == pytest.approx(replayed, rel=0.1)


def test_equal_chunks_that_share_the_links_hide_nothing() -> None:
    rows = {row.schedule: row for row in _choice("yz", (2048, 144), (4608, 2304)).rows}
    halves = rows[Schedule("chunked", "async", chunks=2, label="m")]
    assert halves.exposed == pytest.approx(rows[WHOLE].exposed)
    assert rows[_chunks(1, 3)].exposed < 0.8 * rows[WHOLE].exposed


def test_a_small_all_reduce_has_no_fixed_cost_of_sparse_cores() -> None:
    """The gather of parts of a single row is one: replayed, it takes 6.1 us."""
    rows = {row.schedule: row for row in _choice("x", (1, 576), (2304, 4608)).rows}
    assert rows[WHOLE].exposed * 1e6 == pytest.approx(6.1, rel=0.05)
