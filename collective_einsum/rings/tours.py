"""Rings through all the devices of several mesh axes, between neighbours."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

Place = tuple[int, ...]


def tour(sizes: Sequence[int]) -> list[Place]:
    """Every place of a grid with these sides, in an order that closes to a ring.

    Consecutive places are neighbours, also the last and the first, and no link that closes an axis
    is needed. Only if all sides are odd, some steps are longer.
    """
    even = next((i for i, n in enumerate(sizes) if n % 2 == 0), None)
    long = [i for i, n in enumerate(sizes) if n > 1]
    if even is None or len(long) < 2:
        return list(itertools.product(*map(range, sizes)))
    # Rows along the even axis; all but their first places are walked to and fro, the first ones back.
    rest = [n for i, n in enumerate(sizes) if i != even]
    line = _walk(rest)
    found = []
    for row in range(sizes[even]):
        found += [(row, place) for place in line[1:][:: 1 if row % 2 == 0 else -1]]
    found += [(row, line[0]) for row in reversed(range(sizes[even]))]
    return [(*place[:even], row, *place[even:]) for row, place in found]


@functools.cache
def tours(sizes: tuple[int, ...], closed: tuple[bool, ...]) -> list[list[Place]]:
    """As many rings through every place as can be made that share no link: two, or just `tour`.

    `closed` says of each axis whether its last place is a neighbour of its first. Two rings: one
    walks along a closed axis and every time it is round takes a step along a ring through the other
    axes; the other one takes all the links that are left. Not all sizes allow that.
    """
    for axis, n in enumerate(sizes):
        rest = [m for i, m in enumerate(sizes) if i != axis]
        rows = tour(rest)
        others = [i for i, m in enumerate(sizes) if i != axis and m > 1]
        several = len(others) > 1
        around = any(sizes[i] % 2 == 0 if several else closed[i] for i in others)
        fits = len(rows) % n == 0 and math.gcd(len(rows), n - 1) == 1
        if n < 3 or len(rows) < 3 or not (closed[axis] and around and fits):
            continue
        pair = _pair(len(rows), n)
        return [[(*rows[r][:axis], c, *rows[r][axis:]) for r, c in ring] for ring in pair]
    return [tour(sizes)]


def _pair(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """Two rings through a torus of so many rows, a multiple of the columns, that share no link."""
    first = [(t // columns, (t - t // columns) % columns) for t in range(rows * columns)]
    second, row, column = [], 0, 0
    for _ in first:
        second.append((row, column))
        # The first one leaves a row where row + column + 1 is a multiple of the columns.
        if (row + column + 1) % columns:
            row = (row + 1) % rows
        else:
            column = (column + 1) % columns
    return [first, second]


def _walk(sizes: Sequence[int]) -> list[Place]:
    """Every place of a grid, consecutive ones neighbours; the ends need not be."""
    if not sizes:
        return [()]
    inner = _walk(sizes[1:])
    return [
        (row, *place) for row in range(sizes[0]) for place in inner[:: 1 if row % 2 == 0 else -1]
    ]
