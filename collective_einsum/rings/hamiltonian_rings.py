"""Hamiltonian rings: through all the devices of several mesh axes, from neighbour to neighbour."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

# A device, by its index along each axis.
Place = tuple[int, ...]


def hamiltonian_ring(sizes: Sequence[int]) -> list[Place]:
    """Every place of a grid with these sides, in an order that closes to a ring.

    Consecutive places are neighbours, also the last and the first, and no link that closes an axis
    is needed. Only if all sides are odd, some steps are longer.
    """
    even = next((i for i, n in enumerate(sizes) if n % 2 == 0), None)
    long = [i for i, n in enumerate(sizes) if n > 1]
    if even is None or len(long) < 2:
        return list(itertools.product(*map(range, sizes)))
    # Rows along the even axis: the ring goes to and fro through all but the first place of each row,
    # and returns through the first places.
    rest = [n for i, n in enumerate(sizes) if i != even]
    line = _path(rest)
    places = []
    for row in range(sizes[even]):
        places += [(row, place) for place in line[1:][:: 1 if row % 2 == 0 else -1]]
    places += [(row, line[0]) for row in reversed(range(sizes[even]))]
    return [(*place[:even], row, *place[even:]) for row, place in places]


@functools.cache
def disjoint_rings(sizes: tuple[int, ...], closed: tuple[bool, ...]) -> list[list[Place]]:
    """As many Hamiltonian rings as can be made that share no link: two, or `hamiltonian_ring` alone.

    Two rings: the first goes round a closed axis, and after each round takes a step along a ring
    through the other axes; the second takes all the links that are left. Not all sizes allow that.

    Args:
      sizes: the sides of the grid.
      closed: of each axis, whether its last place is a neighbour of its first.
    """
    for axis, n in enumerate(sizes):
        rest = [m for i, m in enumerate(sizes) if i != axis]
        rows = hamiltonian_ring(rest)
        others = [i for i, m in enumerate(sizes) if i != axis and m > 1]
        several = len(others) > 1
        around = any(sizes[i] % 2 == 0 if several else closed[i] for i in others)
        fits = len(rows) % n == 0 and math.gcd(len(rows), n - 1) == 1
        if n < 3 or len(rows) < 3 or not (closed[axis] and around and fits):
            continue
        pair = _pair(len(rows), n)
        return [[(*rows[r][:axis], c, *rows[r][axis:]) for r, c in ring] for ring in pair]
    return [hamiltonian_ring(sizes)]


def _pair(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """Two rings that share no link, through a torus of `rows`, a multiple of `columns`."""
    first = [(t // columns, (t - t // columns) % columns) for t in range(rows * columns)]
    second, row, column = [], 0, 0
    for _ in first:
        second.append((row, column))
        # The first ring leaves a row where row + column + 1 is a multiple of the columns.
        if (row + column + 1) % columns:
            row = (row + 1) % rows
        else:
            column = (column + 1) % columns
    return [first, second]


def _path(sizes: Sequence[int]) -> list[Place]:
    """Every place of a grid, consecutive ones neighbours; the last and the first need not be."""
    if not sizes:
        return [()]
    inner = _path(sizes[1:])
    return [
        (row, *place) for row in range(sizes[0]) for place in inner[:: 1 if row % 2 == 0 else -1]
    ]
