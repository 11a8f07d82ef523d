"""The devices that a command runs on: those that are attached, or emulated ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from collective_einsum.ruler.compile import target

from ..mesh.axis_collectives import AXES

Shape = tuple[int, int, int]


def make_mesh(
    emulate: Shape | None, shape: Shape | None, choose: Callable[[int, str], Shape]
) -> Mesh:
    """A mesh of emulated CPU devices, or of attached ones.

    Args:
      emulate: the sizes of a mesh of emulated devices; None for attached ones.
      shape: the sizes of a mesh of attached ones, which may be fewer than there are; None for those
        that `choose` gives for their number and kind.
      choose: see there.

    Raises:
      ValueError: both are given, or there are fewer devices.
    """
    if emulate is not None and shape is not None:
        raise ValueError("--emulate and --mesh both give a mesh; leave one of them out")
    if emulate is not None:
        jax.config.update("jax_platforms", "cpu")
        return _mesh(emulate, list(target(f"cpu:{math.prod(emulate)}").devices))
    devices = jax.devices()
    if shape is None:
        shape = choose(len(devices), devices[0].device_kind)
    if math.prod(shape) > len(devices):
        words = ",".join(map(str, shape))
        raise ValueError(
            f"--mesh {words} needs {math.prod(shape)} devices, and there are {len(devices)}; "
            f"--emulate {words} emulates them on this machine's processor"
        )
    return _mesh(shape, devices)


def _mesh(shape: Shape, devices: list[Any]) -> Mesh:
    kinds = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices[: math.prod(shape)])
