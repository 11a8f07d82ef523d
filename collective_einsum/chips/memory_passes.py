"""Seconds of the memory passes of schedules, interpolated in what was observed of a compiler."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping

from .observations import PassKind, PassObservation, observed

# Rows that fill their tiles: what is made of a scatter of them answers `transposes_scatter`.
_FULL_ROWS = 512


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryPasses:
    """What a compiler makes of memory passes on a chip.

    Attributes:
      bandwidth: bytes/s, read and written together, of a pass that adds two large arrays.
      points: bytes and seconds of what was observed of each kind, rising; a kind that is not there
        costs nothing.
      transposes_scatter: whether the compiler, where the rows of a dot's result fill their tiles as well
        as its columns do, transposes it and scatters it; if not, it makes an all-reduce and a slice,
        which move twice the bytes.
      copies_during_hop: whether int8 weights are copied for a ring's dots while its first hop is under
        way; if not, before it.
    """

    bandwidth: float
    points: Mapping[PassKind, tuple[tuple[float, float], ...]]
    transposes_scatter: bool
    copies_during_hop: bool

    def seconds(self, kind: PassKind, size: float, arrays: float = 1) -> float:
        """Seconds of a pass over arrays of `size` bytes in all: linear between observed sizes, and
        beyond the largest; below the smallest, what that one takes."""
        points = self.points.get(kind)
        if not points or not size:
            return 0.0
        each, last = size / arrays, points[0][1]
        for (low, start), (high, end) in itertools.pairwise(points):
            if each > low:
                last = start + (each - low) / (high - low) * (end - start)
            if each <= high:
                break
        return arrays * last


@functools.cache
def memory_passes(name: str) -> MemoryPasses | None:
    """The memory passes of a chip by its short name, as `observations.observed` finds them; None where
    there are none."""
    found = observed(name) if name else None
    if found is None or not found.passes:
        return None
    by_kind: dict[PassKind, list[tuple[float, float]]] = {}
    for one in found.passes:
        if one.kind != "slice" or one.lowered == "all-reduce":
            by_kind.setdefault(one.kind, []).append((one.bytes, one.cycles / found.clock_hz))
    largest, seconds = max(by_kind["add"])
    return MemoryPasses(
        bandwidth=largest / seconds,
        points={kind: tuple(sorted(points)) for kind, points in by_kind.items()},
        transposes_scatter=any(map(_scatters_full_rows, found.passes)),
        copies_during_hop=any(one.lowered == "during a hop" for one in found.passes),
    )


def _scatters_full_rows(one: PassObservation) -> bool:
    return one.kind == "slice" and one.rows == _FULL_ROWS and one.lowered == "reduce-scatter"
