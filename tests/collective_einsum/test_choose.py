"""choose_schedule and "auto": the choice, its table and its reasons, from shapes alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.cost.dots import matmul_seconds
from collective_einsum.cost.roofline import Dot

from .oracle import MeshOf

GATHER: dict[str, Any] = {"axis_name": "x", "gather": "f"}
SCATTER: dict[str, Any] = {"axis_name": "x", "scatter": "f"}


def shaped(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def gather(rows: int, n: int = 4, **options: Any) -> ce.Choice:
    """One chip's part of a projection out of a hidden dimension of 4608 that is sharded over x."""
    return ce.choose_schedule(
        "mf,fe->me", shaped(rows, 4608 // n), shaped(4608, 4608), axis_size=n, **GATHER, **options
    )


def test_rings_for_many_rows_and_blocking_for_few() -> None:
    assert gather(1).rows[0].exposed <= gather(1).rows[-1].seconds
    assert gather(8).schedule.kind != "ring"
    assert gather(2048).schedule.kind == "ring"


def test_the_first_row_is_the_choice_and_the_rest_are_in_order() -> None:
    for rows in (8, 512, 2048):
        found = gather(rows)
        assert found.schedule == found.rows[0].schedule
        rest = [row.seconds for row in found.rows[1:]]
        assert rest == sorted(rest)
        assert {row.schedule.kind for row in found.rows} == {"blocking", "ring", "chunked"}


def test_blocking_is_left_only_for_a_gain() -> None:
    for rows in (1, 8, 64, 256, 512, 2048, 8192):
        found = gather(rows)
        blocking = next(row for row in found.rows if row.schedule.kind == "blocking")
        best = found.rows[0]
        assert best is blocking or best.seconds < 0.99 * blocking.seconds


def test_no_estimate_beats_its_own_communication_or_dots() -> None:
    for row in gather(2048).rows:
        assert row.seconds >= row.compute
        assert row.seconds >= row.communication * 0.999 or row.exposed < row.communication
        assert row.exposed >= 0
        assert row.memory >= 0


def test_it_prints_its_reasons() -> None:
    many, few = str(gather(2048)), str(gather(8))
    for text in (many, few):
        assert "TPU v4, predicted by the cost model" in text
        for word in ("total us", "compute us", "communication us", "exposed us", "extra MB"):
            assert word in text
        assert "total = compute + exposed" in text
        assert "chosen: " in text
    assert "times faster than blocking" in many
    assert str(gather(2048).schedule) in many.splitlines()[2]


def test_faster_links_leave_less_exposed() -> None:
    slow = dataclasses.replace(ce.TPU_V4, link_bandwidth=ce.TPU_V4.link_bandwidth / 8)
    for schedule in (Schedule("blocking"), Schedule("ring", "latency")):
        exposed = [
            next(row.exposed for row in found.rows if row.schedule == schedule)
            for found in (gather(512), gather(512, chip=slow))
        ]
        assert exposed[0] < exposed[1]


@pytest.mark.parametrize("chip", [ce.TPU_V5E, ce.TPU_V6E], ids=["v5e", "v6e"])
def test_a_scatter_over_both_axes_of_a_plane_is_no_cheaper_in_one_chunk(chip: Any) -> None:
    """The compiler makes an all-reduce of it, as of the scatter of "blocking": 936 us for 2048 rows on
    v5e by both, and 878 by a ring (libtpu 0.0.50.1)."""
    axes = {"y": 4, "z": 4}
    options: Any = {"axis_name": tuple(axes), "scatter": "m", "axis_size": axes, "chip": chip}
    found = ce.choose_schedule("me,ef->mf", shaped(2048, 1024), shaped(1024, 8192), **options)
    seconds = {str(row.schedule): row.seconds for row in found.rows}
    assert seconds["chunked 1, latency"] == pytest.approx(seconds["blocking"], rel=0.02)
    assert found.schedule == Schedule("ring", "latency")
    few = ce.choose_schedule("me,ef->mf", shaped(128, 1024), shaped(1024, 8192), **options)
    assert few.schedule == Schedule("blocking")


def test_chunks_of_columns_copy_int8_weights() -> None:
    """The compiler copies each of these matrices out of a stack, in 25.5 us by the bundles of libtpu
    0.0.50.1; bf16 ones it does not."""
    x, w = (
        jax.ShapeDtypeStruct((256, 4608), jnp.bfloat16),
        jax.ShapeDtypeStruct((4608, 4608), jnp.int8),
    )
    scale = jax.ShapeDtypeStruct((1, 4608), jnp.float32)
    wide = jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    longer = {}
    weights: dict[str, Any] = {"int8": ce.Quantized(w, scale), "bf16": wide}
    for dtype, weight in weights.items():
        options: Any = {"axis_name": "x", "scatter": "m", "axis_size": {"x": 4}}
        chip = ce.TPU_V4.under_options()
        rows = ce.choose_schedule("me,ef->mf", x, [weight, weight], **options, chip=chip).rows
        compute = {str(row.schedule): row.compute for row in rows}
        longer[dtype] = compute["chunked 2 over 'f', async"] - compute["chunked 1, async"]
        assert not str(rows[0].schedule).startswith("chunked 2")
    narrower, whole = (
        matmul_seconds(
            ce.TPU_V4,
            Dot(
                rows=256,
                contracted=4608,
                columns=columns,
                rhs=jnp.dtype(jnp.int8),
                scattered="whole",
            ),
        )
        for columns in (2304, 4608)
    )
    dots = 2 * (2 * narrower - whole)
    assert longer["int8"] - dots == pytest.approx(2 * 25.5e-6, rel=0.1)
    assert longer["bf16"] < 30e-6


def test_one_device_needs_no_schedule() -> None:
    assert [row.schedule for row in gather(512, n=1).rows] == [Schedule("blocking")]


def test_both_ends_and_several_operands() -> None:
    found = ce.choose_schedule(
        "me,ef->mf",
        shaped(2048, 288),
        [shaped(4608, 4608)] * 2,
        gather_axis_name=("y", "z"),
        gather="e",
        scatter_axis_name="x",
        scatter="f",
        axis_size={"x": 4, "y": 4, "z": 4},
    )
    rings_of = {row.schedule.ring_of for row in found.rows if row.schedule.kind == "ring"}
    assert rings_of == {"gather", "scatter"}
    assert "gather 'e' over ('y', 'z'), scatter 'f' over ('x',)" in str(found)


def test_it_can_be_asked_within_a_shard_map(mesh_of: MeshOf) -> None:
    asked = []

    def local(x: Any) -> Any:
        asked.append(gather(2048).schedule)
        return x

    mesh = mesh_of((2, 4), "xy")
    jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(jnp.ones(2))
    assert asked[0] == gather(2048).schedule


def test_auto_is_the_choice(mesh_of: MeshOf) -> None:
    mesh = mesh_of((8,), "x")
    x, w = shaped(2048, 8 * 576), shaped(4608, 512)

    def text(schedule: Any) -> str:
        def local(x: Any, w: Any) -> Any:
            return ce.all_gather_einsum(
                "mf,fe->me", x, w, axis_name="x", gather="f", schedule=schedule
            )

        mapped = jax.shard_map(
            local, mesh=mesh, in_specs=(P(None, "x"), P()), out_specs=P(), check_vma=False
        )
        return jax.jit(mapped).lower(x, w).as_text()

    chosen = ce.choose_schedule(
        "mf,fe->me", shaped(2048, 576), shaped(4608, 512), axis_size={"x": 8}, **GATHER
    ).schedule
    assert text("auto") == text(chosen)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gather": "f", "axis_size": 4}, "give the axes of the gather"),
        ({**GATHER, "axis_size": (4, 4)}, "2 size.* for the axes"),
        ({**GATHER, "axis_size": {"y": 4}}, "lacks the axis 'x'"),
        ({"axis_name": "x", "gather": "q", "axis_size": 4}, "'q'"),
        ({**SCATTER, "axis_size": 4}, "'f'"),
    ],
)
def test_errors(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ce.choose_schedule("mf,fe->me", shaped(16, 8), shaped(32, 8), **options)


@pytest.mark.parametrize(
    ("rhs", "options", "words"),
    [
        ([(32, 8), (32, 16)], {"scatter": "e"}, "differ in width; ask for one at a time"),
        (
            [(8, 16), (8, 16)],
            {"gather": "f"},
            "gathers rhs, and each of .* is an einsum of its own",
        ),
    ],
)
def test_einsums_of_their_own_are_asked_for_one_by_one(rhs: Any, options: Any, words: str) -> None:
    """What is said of one is not said of them all."""
    rights = [shaped(*shape) for shape in rhs]
    with pytest.raises(ValueError, match=words):
        ce.choose_schedule(
            "mf,fe->me", shaped(16, 32), rights, axis_name="x", axis_size=4, **options
        )
