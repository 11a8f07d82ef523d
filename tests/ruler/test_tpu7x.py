"""TPU7x: slices of chips that are two devices, against figures that others measured on them."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

import collective_einsum as ce
import layouts
from collective_einsum import ruler
from collective_einsum.ruler.compile import target
from collective_einsum.ruler.torus import Torus

pytestmark = pytest.mark.tpu

# AI-Hypercomputer/tpu-recipes, microbenchmarks/ironwood: microseconds of an all-gather over the first
# two axes of a 2x2x2 mesh of f32[n, 8, 128] a device, by n; Tflop/s of a bf16 dot with sides of n.
ALL_GATHER_US = {64: 21.9, 256: 48.7, 1024: 155, 4096: 576, 16384: 2252}
DOT_TFLOPS = {1024: 349.73, 2048: 679.28, 4096: 892.94, 16384: 950.13}


@functools.cache
def mesh() -> Mesh:
    return ruler.mesh("tpu7x:2x2x1", {"x": 2, "y": 2, "z": 2})


def shape(sizes: tuple[int, ...], spec: P, dtype: DTypeLike = jnp.bfloat16) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh(), spec))


@pytest.mark.parametrize("rows", ALL_GATHER_US)
def test_an_all_gather_takes_as_long_as_was_measured(rows: int) -> None:
    gather = jax.shard_map(
        lambda x: jax.lax.all_gather(x, ("x", "y"), tiled=True),
        mesh=mesh(),
        in_specs=P(("x", "y")),
        out_specs=P(),
        check_vma=False,
    )
    x = shape((4 * rows, 8, 128), P(("x", "y")), jnp.float32)
    timeline = ruler.predict(gather, x)
    assert timeline.communication_seconds == pytest.approx(ALL_GATHER_US[rows] * 1e-6, rel=0.03)
    # The links of a chip carry what both of its devices receive, each at most its bandwidth.
    (sent,) = {moved for moved in timeline.link_bytes.values() if moved}
    assert sent == 2 * 3 * rows * 8 * 128 * 4 / 2


@pytest.mark.parametrize("size", DOT_TFLOPS)
def test_a_dot_is_as_fast_as_was_measured(size: int) -> None:
    x = shape((size, size), P())
    timeline = ruler.predict(lambda x, w: x @ w, x, x)
    measured = 2 * size**3 / DOT_TFLOPS[size] / 1e12
    assert timeline.dot_seconds == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
    ("name", "axes", "wrapped"),
    [
        ("tpu7x:2x2x1", {"x": 2, "y": 4}, (False, False, False, False)),
        ("tpu7x:2x2x2", {"x": 4, "y": 4}, (False, False, False, False)),
        ("tpu7x:4x4x4", {"x": 4, "y": 4, "z": 8}, (True, True, True, False)),
    ],
)
def test_two_devices_are_at_each_coordinate(
    name: str, axes: dict[str, int], wrapped: tuple[bool, ...]
) -> None:
    where = ruler.mesh(name, axes)
    torus = Torus.of_mesh(where, ce.TPU_7X)
    sides = tuple(int(side) for side in name.partition(":")[2].split("x"))
    assert torus.sizes == (*sides, 2)
    assert len(set(torus.coords)) == 2 * math.prod(sides) == where.devices.size
    assert torus.wrapped == wrapped
    assert torus.bandwidth((3, 1), ce.TPU_7X) == 6 * torus.bandwidth((0, 1), ce.TPU_7X)


def test_auto_and_the_compiler_know_the_chip() -> None:
    choice = ce.choose_schedule(
        "mf,fe->me",
        *(jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((8192, 2048), (8192, 8192))),
        axis_name="x",
        gather="f",
        axis_size=4,
        chip="v7x",
    )
    # SparseCores gather with no option.
    assert "async" in {row.schedule.direction for row in choice.rows}
    blocking = next(row for row in choice.rows if row.schedule.kind == "blocking")
    assert choice.rows[0].seconds <= blocking.seconds
    assert ce.compiler_options("v7x") == {
        "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
        "xla_tpu_enable_async_all_to_all": True,
        "xla_tpu_control_large_2nd_minor_layout_for_x16": False,
    }

    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        return ce.all_gather_einsum("mf,fe->me", x, w, axis_name="x", gather="f")

    mapped = jax.shard_map(
        step, mesh=mesh(), in_specs=(P(None, "x"), P()), out_specs=P(), check_vma=False
    )
    args = (shape((2048, 4096), P(None, "x")), shape((4096, 4096), P()))
    assert ruler.predict(ce.jit(mapped), *args, target="tpu7x:2x2x1").total_seconds > 0


def test_the_planner_plans_for_it() -> None:
    plan = layouts.plan("palm-62b", chip="v7x", chips=8, phase="decode", batch=64, context=2048)
    assert plan.best.cost is not None
    assert plan.best.cost.seconds > 0
    lowered = layouts.lower_decode_step(layouts.PALM_8B, mesh(), batch=8, context=64)
    assert ruler.predict(lowered).exposed_seconds > 0
    assert target("tpu7x:2x2x1").chip is ce.TPU_7X
