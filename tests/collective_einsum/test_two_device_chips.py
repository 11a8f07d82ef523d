"""Collectives on TPU7x, whose chips are two devices: the cost model against routes on the torus."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import collective_einsum as ce
from collective_einsum import ruler
from collective_einsum.cost import (
    all_gather_seconds,
    all_to_all_seconds,
    hops,
    reduce_scatter_seconds,
    ring_gather_seconds,
    sides,
)
from collective_einsum.ruler.torus import Torus

CHIP = ce.TPU_7X
BYTES = 1e9
ALL = [axes for n in (1, 2, 3) for axes in itertools.combinations("xyz", n)]
# A slice, its mesh, and the axes that lie along sides of the torus: jax lays chips of 2x2 in a circle.
SLICES = [
    ("tpu7x:4x4x4", (4, 4, 8), ALL),
    ("tpu7x:2x2x2", (2, 2, 4), [("x",), ("z",), ("y", "z"), ("x", "y", "z")]),
    ("tpu7x:2x2x1", (2, 2, 2), [("z",), ("x", "y"), ("x", "y", "z")]),
]


@functools.cache
def mesh(name: str, sizes: tuple[int, ...]) -> Mesh:
    return ruler.mesh(name, dict(zip("xyz", sizes, strict=True)))


def groups(mesh: Mesh, axes: Sequence[str]) -> list[list[int]]:
    """The devices, in the mesh's flat order, that a collective over some axes brings together."""
    flat = np.arange(mesh.devices.size).reshape(mesh.devices.shape)
    order = [i for i, name in enumerate(mesh.axis_names) if name not in axes]
    order += [i for i, name in enumerate(mesh.axis_names) if name in axes]
    members = int(np.prod([mesh.shape[axis] for axis in axes]))
    return flat.transpose(order).reshape(-1, members).tolist()


@pytest.mark.tpu
@pytest.mark.parametrize("kind", ["all_gather", "all_to_all"])
@pytest.mark.parametrize(("name", "sizes", "straight"), SLICES)
def test_bytes_take_as_long_as_on_the_torus(
    name: str,
    sizes: tuple[int, ...],
    straight: list[tuple[str, ...]],
    kind: Literal["all_gather", "all_to_all"],
) -> None:
    on = mesh(name, sizes)
    torus = Torus.of_mesh(on, CHIP)
    price = {"all_gather": all_gather_seconds, "all_to_all": all_to_all_seconds}[kind]
    for axes in straight:
        route = getattr(torus, kind)(groups(on, axes), BYTES)
        sent = max(
            load * route.bytes / torus.bandwidth(link, CHIP) for link, load in route.loads.items()
        )
        along = sides(CHIP, on.shape, axes)
        assert price(CHIP, along, BYTES) - price(CHIP, along, 0) == pytest.approx(sent), axes
        assert hops(CHIP, along) == route.hops, axes


@pytest.mark.parametrize("direction", ["gather", "scatter"])
def test_an_axis_of_whole_chips_has_all_their_links(direction: str) -> None:
    price = all_gather_seconds if direction == "gather" else reduce_scatter_seconds
    sizes = {"data": 8, "model": 8}

    def sent(axis: str) -> float:
        along = sides(CHIP, sizes, (axis,))
        return price(CHIP, along, BYTES) - price(CHIP, along, 0)

    # Eight chips, whose links two devices share; four chips, whose two devices gather half each.
    assert sent("data") == pytest.approx(BYTES * 7 / 8 / (2 * 45e9))
    assert sent("model") == pytest.approx(BYTES * 3 / 4 / (2 * 90e9))


def test_a_ring_of_permutes_goes_through_both_devices() -> None:
    one = {"x": 8}

    def sent(chip: ce.Chip) -> float:
        along = sides(chip, one, ("x",))
        return ring_gather_seconds(chip, along, BYTES) - ring_gather_seconds(chip, along, 0)

    assert sent(CHIP) == pytest.approx(BYTES * 7 / 8 / (2 * 90e9))
    assert sent(ce.TPU_V5P) == pytest.approx(BYTES * 7 / 8 / (2 * 90e9))
    within = sides(CHIP, {"x": 2}, ("x",))
    dies = ring_gather_seconds(CHIP, within, BYTES) - ring_gather_seconds(CHIP, within, 0)
    assert dies == pytest.approx(BYTES / 2 / (2 * CHIP.die_bandwidth))


def test_chips_of_one_device_have_their_axes_as_they_are() -> None:
    for chip in (ce.TPU_V4, ce.TPU_V5E, ce.TPU_V5P, ce.TPU_V6E):
        assert {type(side) for side in sides(chip, {"x": 4, "y": 4}, ("x", "y"))} == {int}


def test_the_devices_of_a_chip_lie_along_the_mesh_s_last_axis() -> None:
    lhs, rhs = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((512, 4608), (4608, 4608)))

    def sent(axis_size: dict[str, int]) -> float:
        choice = ce.choose_schedule(
            "mk,kn->mn", lhs, rhs, axis_name="x", gather="m", axis_size=axis_size, chip=CHIP
        )
        return choice.rows[0].communication

    chips, devices = sent({"x": 4, "y": 2}), sent({"y": 2, "x": 4})
    assert chips != devices
    assert sent({"x": 4}) == devices
    assert sent({"y": 2, "x": 4, "z": 1}) == devices
