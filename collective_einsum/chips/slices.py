"""Slices: the torus of a number of chips, and how the axes of a mesh lie on it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence


def slice_sides(chips: int, dims: int) -> tuple[int, ...]:
    """The sides of the most compact slice of `chips` chips in `dims` dimensions, ascending."""
    return min(factors(chips, dims), key=lambda sides: (sum(sides), sides))


def factors(n: int, count: int) -> list[tuple[int, ...]]:
    """All ascending tuples of `count` factors of n."""
    if count == 1:
        return [(n,)]
    return [
        (first, *rest)
        for first in range(1, math.isqrt(n) + 1)
        if n % first == 0
        for rest in factors(n // first, count - 1)
        if first <= rest[0]
    ]


def folded_axes(axis_sizes: Mapping[str, int], dims: int) -> dict[str, tuple[int, ...]]:
    """The axes of a mesh that lie along several sides of its slice, with these sides.

    A mesh of fewer axes than the torus has dimensions has such, as 16 x 4 on 4 x 4 x 4 chips. The slice
    is taken for the most compact one of as many chips, on which jax (`jax.make_mesh`) places devices:
    the last axis first, along as many sides as multiply to its size. {} where they do not fit.

    Args:
      axis_sizes: of all axes of the mesh, in its order, in chips.
      dims: the dimensions of the torus.
    """
    sizes = {axis: n for axis, n in axis_sizes.items() if n > 1}
    if not 0 < len(sizes) < dims:
        return {}
    free = [side for side in slice_sides(math.prod(sizes.values()), dims) if side > 1]
    placed: dict[str, tuple[int, ...]] = {}
    for axis, n in reversed(sizes.items()):
        along = _sides_of(n, free)
        if along is None:
            return {}
        for side in along:
            free.remove(side)
        placed[axis] = along
    return {axis: along for axis, along in placed.items() if len(along) > 1}


def _sides_of(n: int, free: Sequence[int]) -> tuple[int, ...] | None:
    """As many of the free sides as multiply to n; None if there are none such."""
    for count in range(len(free), 0, -1):
        for along in itertools.combinations(free, count):
            if math.prod(along) == n:
                return along
    return None
