"""Sets of intervals of time: their union, and how much of another interval they cover."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable

Interval = tuple[float, float]


class Intervals:
    """The union of intervals, each (start, end)."""

    def __init__(self, intervals: Iterable[Interval]):
        self._disjoint = _union(intervals)
        self._starts = [start for start, _ in self._disjoint]
        lengths = (end - start for start, end in self._disjoint)
        self._before = list(itertools.accumulate(lengths, initial=0.0))

    @property
    def length(self) -> float:
        """The sum of the lengths of the union."""
        return self._before[-1]

    def covered(self, start: float, end: float) -> float:
        """The length of the union that lies between `start` and `end`."""
        return max(0.0, self._until(end) - self._until(start))

    def _until(self, time: float) -> float:
        """The length of the union that lies before `time`."""
        place = bisect.bisect_right(self._starts, time)
        if not place:
            return 0.0
        start, end = self._disjoint[place - 1]
        return self._before[place - 1] + min(time, end) - start


def _union(intervals: Iterable[Interval]) -> list[Interval]:
    """The union of intervals, as intervals that do not overlap, in order."""
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
