"""One ring through all the devices of several mesh axes."""

from __future__ import annotations

import itertools
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


def _walk(sizes: Sequence[int]) -> list[Place]:
    """Every place of a grid, consecutive ones neighbours; the ends need not be."""
    if not sizes:
        return [()]
    inner = _walk(sizes[1:])
    return [
        (row, *place) for row in range(sizes[0]) for place in inner[:: 1 if row % 2 == 0 else -1]
    ]
