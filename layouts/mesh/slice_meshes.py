"""The meshes (x, y, z) of a number of chips: those that lie along the sides of a slice."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from jax.sharding import AbstractMesh, Mesh

from collective_einsum.chips import Chip, factors, slice_sides

from ..arguments import as_size
from .axes import MeshLike
from .axis_collectives import AXES, check_mesh

# The sizes of x, y and z: by name, in order, written as "4x4x4", or those of a mesh.
ShapeLike = Mapping[str, int] | Sequence[int] | str | MeshLike


def meshes(chips: int, chip: Chip, *, folded: bool = False) -> list[dict[str, int]]:
    """All sizes of x, y and z with which `chips` chips make a mesh.

    On a torus, x, y and z lie along the sides of the most compact slice, in any order. Where every
    chip reaches every other, up to two axes have any sizes.

    Args:
      chips: how many.
      chip: all of them.
      folded: also, on a torus of three sides, x of one device and y or z along two sides.

    Raises:
      ValueError: `chips` is not a positive integer.
    """
    chips = as_size("chips", chips)
    if chip.torus_dims:
        sides = slice_sides(chips, min(chip.torus_dims, len(AXES)))
        shapes = set(itertools.permutations(sides + (1,) * (len(AXES) - len(sides))))
        if folded and len(sides) == len(AXES):
            pairs = {(a * b, c) for a, b, c in itertools.permutations(sides)}
            shapes |= {(1, *pair) for two in pairs for pair in (two, two[::-1])}
    else:
        shapes = {(*pair, 1) for sides in factors(chips, 2) for pair in (sides, sides[::-1])}
    return [dict(zip(AXES, shape, strict=True)) for shape in sorted(shapes, reverse=True)]


def as_shape(name: str, value: ShapeLike) -> dict[str, int]:
    """The sizes of x, y and z.

    Args:
      name: of the argument, for the message.
      value: three numbers, a mapping from "x", "y" and "z", a string such as "4x4x4", or a mesh.

    Raises:
      ValueError: `value` is none of them, or a size is no positive integer.
    """
    if isinstance(value, Mesh | AbstractMesh):
        return check_mesh(value)
    sizes = [value.get(axis) for axis in AXES] if isinstance(value, Mapping) else value
    try:
        numbers = [int(n) for n in sizes.split("x")] if isinstance(sizes, str) else sizes
        return {axis: as_size(name, n) for axis, n in zip(AXES, numbers, strict=True)}
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={value!r} must be three positive integers, the sizes of x, y and z, such as "
            "(2, 2, 2)"
        ) from None


def shape_name(sizes: Mapping[str, int]) -> str:
    """Sizes of x, y and z as a string, such as "4x4x4"."""
    return "x".join(str(sizes[axis]) for axis in AXES)
