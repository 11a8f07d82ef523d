"""Mesh axes that lie along several sides of a slice: which they are, and what lax's collectives cost there."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import ruler
from collective_einsum.chips.slices import folded_axes
from collective_einsum.cost.torus import all_gather_seconds, reduce_scatter_seconds

# The most compact slice of as many chips, and meshes of fewer axes than it has dimensions.
MESHES = [
    ("v5p:4x4x4", {"d": 16, "t": 4}),
    ("v5p:4x4x4", {"d": 4, "t": 16}),
    ("v4:4x4x4", {"t": 64}),
    ("v4:2x2x2", {"d": 2, "t": 4}),
    ("v4:2x2x4", {"d": 4, "t": 4}),
    ("v5e:2x4", {"t": 8}),
    ("v6e:4x4", {"d": 1, "t": 16}),
    ("v5e:4x4", {"d": 4, "t": 4}),
    ("v5p:4x4x4", {"x": 4, "y": 4, "z": 4}),
    ("v5p:4x4x4", {"d": 8, "t": 8}),
    ("v5e:4x4", {"d": 2, "t": 8}),
]
DIMS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}


@pytest.mark.parametrize(("target", "axes"), MESHES)
def test_sides_are_those_of_the_devices(target: str, axes: dict[str, int]) -> None:
    """By the coordinates of the devices that jax places along each axis."""
    devices = ruler.mesh(target, axes).devices
    found = folded_axes(axes, DIMS[target.partition(":")[0]])
    for place, axis in enumerate(axes):
        along = np.moveaxis(devices, place, 0).reshape(axes[axis], -1)[:, 0]
        coords = np.array([device.coords for device in along])
        sides = [len(set(column)) for column in coords.T if len(set(column)) > 1]
        whole = math.prod(sides) == axes[axis] and sorted(map(tuple, coords)) == sorted(
            itertools.product(*(sorted(set(column)) for column in coords.T))
        )
        if axis in found:
            assert whole and sorted(found[axis]) == sorted(sides)
        else:
            # One side, or sides that axes share, which are priced as one.
            assert len(sides) < 2 or len([n for n in axes.values() if n > 1]) >= len(coords.T) or (
                math.prod(sides) != axes[axis] or not found
            )


@pytest.mark.parametrize("kind", ["all_gather", "reduce_scatter"])
def test_price_is_that_of_the_replay(kind: str) -> None:
    mesh = ruler.mesh("v5p:4x4x4", {"d": 16, "t": 4})

    def local(x: jax.Array) -> jax.Array:
        if kind == "all_gather":
            return lax.all_gather(x, "d", axis=0, tiled=True)
        return lax.psum_scatter(x, "d", scatter_dimension=1, tiled=True)

    into, out = (P("d"), P()) if kind == "all_gather" else (P(), P(None, "d"))
    mapped = jax.shard_map(local, mesh=mesh, in_specs=into, out_specs=out, check_vma=False)
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=NamedSharding(mesh, into))
    timeline = ruler.predict(mapped, x)
    price = {"all_gather": all_gather_seconds, "reduce_scatter": reduce_scatter_seconds}[kind]
    folded = price(ce.TPU_V5P, [4, 4], 2 * 4096**2)
    ring = price(ce.TPU_V5P, [16], 2 * 4096**2)
    assert abs(timeline.exposed_seconds / folded - 1) < 0.05
    assert abs(timeline.exposed_seconds / ring - 1) > 0.4


def test_the_choice_knows_the_whole_mesh() -> None:
    """Over 16 of 16 x 4 chips, lax sends over two sides, and a ring goes round one."""
    x = jax.ShapeDtypeStruct((4096, 6144), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((4096, 3072), jnp.bfloat16)

    def blocking(axis_size: object) -> float:
        choice = ce.choose_schedule(
            "rf,rm->fm", x, w, axis_name="d", scatter="m", axis_size=axis_size, chip="v5p"
        )
        return choice.blocking.exposed

    assert blocking({"d": 16, "t": 4}) < 0.6 * blocking(16)
    assert blocking({"d": 16}) == pytest.approx(blocking({"d": 16, "t": 1}))
