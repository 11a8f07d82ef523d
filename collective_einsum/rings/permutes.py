"""Shards sent from device to device: the only file that calls `lax.ppermute`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from .steps import together


def shift(x: Any, axis: str | tuple[str, ...], by: int, devices: Sequence[int] = ()) -> Any:
    """Every device's pytree `x` sent `by` devices further along a ring.

    Args:
      x: the arrays. The items of a list are sent one after the other, those of other trees at once.
      axis: the mesh axis that is the ring, or the axes, in the order of the mesh, that `devices`
        numbers.
      by: how many devices further; negative for the other direction.
      devices: of a ring over several axes, the devices in its order, by `device_number`.
    """
    if isinstance(axis, str):
        devices = range(lax.axis_size(axis))
    pairs = [(source, devices[(i + by) % len(devices)]) for i, source in enumerate(devices)]

    def send(item: Any) -> Any:
        return jax.tree.map(lambda leaf: lax.ppermute(leaf, axis, pairs), item)

    if not isinstance(x, list):
        return send(x)
    sent: list[Any] = []
    for item in x:
        if sent:
            sent[-1], item = together(sent[-1], item)
        sent.append(send(item))
    return sent


def exchange(x: jax.Array, axes: tuple[str, ...], by: tuple[int, ...]) -> jax.Array:
    """Every device's `x` sent to the device `by[i]` places further along each `axes[i]`."""
    by_axis = dict(zip(axes, by, strict=True))
    axes = in_mesh_order(axes)
    by = tuple(by_axis[axis] for axis in axes)
    sizes = [lax.axis_size(axis) for axis in axes]
    places = list(itertools.product(*map(range, sizes)))
    number = {place: i for i, place in enumerate(places)}
    pairs = [
        (i, number[tuple((p + b) % n for p, b, n in zip(place, by, sizes, strict=True))])
        for place, i in number.items()
    ]
    return lax.ppermute(x, axes, pairs)


def reorder_shards(x: jax.Array, have: tuple[str, ...], want: tuple[str, ...]) -> jax.Array:
    """Sends the shards of a dimension that lie over the axes `have`, the first one major, so that they
    lie over `want`, the same axes in another order."""
    axes = in_mesh_order(have)
    sizes = [lax.axis_size(axis) for axis in axes]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    sources, targets = (
        devices.transpose([axes.index(axis) for axis in order]).ravel().tolist()
        for order in (have, want)
    )
    return lax.ppermute(x, axes, list(zip(sources, targets, strict=True)))


def device_number(place: Mapping[str, int], axes: Sequence[str]) -> int:
    """The number of the device at `place`, its index along each of `axes`, the first one major."""
    number = 0
    for axis in axes:
        number = number * lax.axis_size(axis) + place[axis]
    return number


def in_mesh_order(axes: tuple[str, ...]) -> tuple[str, ...]:
    """The axes in the order in which `lax.ppermute` numbers devices, whatever order it is given."""
    return tuple(sorted(axes, key=jax.sharding.get_abstract_mesh().axis_names.index))


def total(axes: tuple[str, ...]) -> int:
    """The number of devices along `axes`."""
    return math.prod(lax.axis_size(axis) for axis in axes)
