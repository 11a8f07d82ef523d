"""Mesh axes along several sides of a slice: which they are, and what lax's collectives cost there."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import ruler
from collective_einsum.chips.slices import folded_axes

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
]
DIMS = {"v4": 3, "v5p": 3, "v5e": 2, "v6e": 2}


@pytest.mark.parametrize(("target", "axes"), MESHES)
def test_sides_are_those_of_the_devices(target: str, axes: dict[str, int]) -> None:
    """By the coordinates of the devices that jax places along each axis."""
    devices = ruler.mesh(target, axes).devices
    along = {}
    for place, (axis, size) in enumerate(axes.items()):
        coords = [d.coords for d in np.moveaxis(devices, place, 0).reshape(size, -1)[:, 0]]
        values = [sorted(set(column)) for column in zip(*coords, strict=True)]
        # They fill a block of the torus.
        assert sorted(map(tuple, coords)) == sorted(itertools.product(*values))
        along[axis] = sorted(len(column) for column in values if len(column) > 1)
    found = folded_axes(axes, DIMS[target.partition(":")[0]])
    several = {axis: sides for axis, sides in along.items() if len(sides) > 1}
    assert {axis: sorted(sides) for axis, sides in found.items()} == several


@pytest.mark.parametrize(("axes", "dims"), [({"d": 8, "t": 8}, 3), ({"d": 2, "t": 8}, 2)])
def test_axes_that_share_a_side_are_priced_as_one_side_each(axes: Any, dims: int) -> None:
    assert folded_axes(axes, dims) == {}


@pytest.mark.tpu
@pytest.mark.parametrize("kind", ["gather", "scatter"])
@pytest.mark.parametrize(
    ("target", "axes"),
    [
        ("v5p:4x4x4", {"d": 4, "t": 16}),
        ("v4:4x4x4", {"t": 64}),
        ("v4:2x2x2", {"t": 8}),
        ("v5e:4x4", {"t": 16}),
        ("v5e:2x4", {"t": 8}),
        ("v6e:2x2", {"t": 4}),
    ],
)
def test_exposed_seconds_are_those_of_the_replay(
    target: str, axes: dict[str, int], kind: str
) -> None:
    """Of an einsum whose operand is gathered, or whose result is scattered, by lax."""
    mesh, n = ruler.mesh(target, axes), axes["t"]
    text, collective = "mk,kn->mn", dict[str, Any]({kind: "k" if kind == "gather" else "n"})
    if kind == "gather":
        shapes, specs, out = ((2048, 4096), (4096, 8192 // n)), (P(None, "t"), P()), P()
        local = ((2048, 4096 // n), (4096, 8192 // n))
    else:
        shapes, specs, out = ((2048, 8192), (8192, 4096)), (P(None, "t"), P("t")), P(None, "t")
        local = ((2048, 8192 // n), (8192 // n, 4096))

    def program(x: jax.Array, w: jax.Array) -> jax.Array:
        function = ce.all_gather_einsum if kind == "gather" else ce.einsum_reduce_scatter
        return function(text, x, w, axis_name="t", schedule="blocking", **collective)

    mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    operands = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    replayed = ruler.predict(mapped, *operands).exposed_seconds
    choice = ce.choose_schedule(
        text,
        *(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in local),
        axis_name="t",
        axis_size=axes,
        chip=target.partition(":")[0],
        **collective,
    )
    assert choice.blocking.exposed == pytest.approx(replayed, rel=0.03)


def test_the_choice_knows_the_whole_mesh() -> None:
    """Over 16 of 16 x 4 chips, lax sends over two sides, and a ring goes round one."""
    x = jax.ShapeDtypeStruct((4096, 6144), jnp.bfloat16)
    w = jax.ShapeDtypeStruct((4096, 3072), jnp.bfloat16)

    def blocking(axis_size: Any) -> float:
        choice = ce.choose_schedule(
            "rf,rm->fm", x, w, axis_name="d", scatter="m", axis_size=axis_size, chip="v5p"
        )
        return choice.blocking.exposed

    assert blocking({"d": 16, "t": 4}) < 0.6 * blocking(16)
    assert blocking({"d": 16}) == pytest.approx(blocking({"d": 16, "t": 1}))
