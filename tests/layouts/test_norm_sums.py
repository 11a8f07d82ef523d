"""The sums of norms over chips: one all-reduce, or hops that overlap a projection."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

import layouts
from bench.decoder_suite.layers import mesh_of
from layouts.cost.norm_cost import sums_overlap
from layouts.mesh.axis_collectives import AXES, all_reduce_few
from layouts.models.open_models import LLAMA_31_8B
from layouts.partitionings import FEEDFORWARDS
from layouts.planning.defaults import chip_of


@pytest.mark.parametrize("in_hops", [False, True])
@pytest.mark.parametrize("schedule", ["auto", "blocking", "latency", "unidirectional"])
@pytest.mark.parametrize("axes", [("x",), ("y", "z"), AXES, ()], ids="".join)
@pytest.mark.parametrize("sides", [(2, 2, 2), (8, 1, 1), (1, 3, 2)], ids=str)
def test_sums_of_few_numbers(
    sides: tuple[int, ...], axes: tuple[str, ...], schedule: str, in_hops: bool
) -> None:
    mesh = jax.make_mesh(
        sides, AXES, devices=jax.devices()[: int(np.prod(sides))], axis_types=(AxisType.Auto,) * 3
    )
    x = np.random.default_rng(0).normal(size=(*sides, 5, 1)).astype(np.float32)
    summed = jax.shard_map(
        lambda own: all_reduce_few(own, axes, schedule, in_hops=in_hops),
        mesh=mesh,
        in_specs=PartitionSpec(*AXES),
        out_specs=PartitionSpec(*AXES),
        check_vma=False,
    )
    over = tuple(AXES.index(axis) for axis in axes)
    expected = np.broadcast_to(x.sum(over, keepdims=True), x.shape) if over else x
    np.testing.assert_allclose(jax.jit(summed)(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("slice_", "layout", "hops"),
    [
        ("v4:4x2x2", "WS 2D all-reduce", True),
        ("v5e:4x4", "WS 2D all-reduce", True),
        ("v5p:4x2x2", "WS 2D all-reduce", False),
        ("v6e:4x4", "WS 2D all-reduce", False),
        # An all-gather stands between the norm and the matmuls.
        ("v4:4x2x2", "WS 2D batch", False),
        ("v5e:4x4", "WS 2D", False),
    ],
)
def test_hops_where_the_compiler_puts_them_beside_the_matmul(
    slice_: str, layout: str, hops: bool
) -> None:
    mesh = mesh_of(slice_)
    assert sums_overlap(FEEDFORWARDS[layout], chip_of(mesh)) == hops
    for schedule, permuted in (("auto", hops), ("latency", True), ("blocking", False)):
        how: dict[str, Any] = {"batch": 32, "context": 512, "schedule": schedule}
        lowered = layouts.lower_decode_step(
            dataclasses.replace(LLAMA_31_8B, layers=1), mesh, plan=f"{layout}, batch z", **how
        )
        text = lowered.as_text(debug_info=True)
        found = re.search(r"/reduce_scatter\[latency\]/ppermute", text)
        assert bool(found) == permuted, (schedule, permuted)
