"""The streams of a ring collective, and the directions in which each sends its shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..ops.schedule import Direction
from .slicing import Span


@dataclasses.dataclass(frozen=True)
class RingDirection:
    """A slice of every shard that is sent round the ring in one direction.

    Attributes:
      step: 1 or -1, how many devices further each hop sends it.
      hops: how many hops it takes.
      start: of the slice, in the shard.
      size: of the slice.
    """

    step: int
    hops: int
    start: int
    size: int

    @property
    def span(self) -> Span:
        """The slice of every shard."""
        return Span(self.start, self.size)


def ring_directions(n: int, direction: Direction, size: int) -> tuple[RingDirection, ...]:
    """The directions of a ring of `n` devices under a schedule's `direction`.

    Args:
      n: the devices.
      direction: of the schedule: "bidirectional" sends halves of every shard, "latency" full shards
        both ways; each other one full shards in one direction.
      size: the length of a shard in the dimension that may be halved.
    """
    if direction == "latency":
        both = [RingDirection(1, n // 2, 0, size), RingDirection(-1, (n - 1) // 2, 0, size)]
    elif direction == "bidirectional":
        half = -(-size // 2)
        both = [RingDirection(1, n - 1, 0, half), RingDirection(-1, n - 1, half, size - half)]
    else:
        both = [RingDirection(1, n - 1, 0, size)]
    return tuple(way for way in both if way.hops and way.size)


@dataclasses.dataclass(frozen=True)
class Stream:
    """Shards that go round one ring; several streams on different rings use more of the links.

    Attributes:
      axis: the mesh axis of the ring, or the axes, in the order of the mesh, that it goes through.
      directions: in which they are sent.
      devices: of a ring through several axes, the devices in its order, by `permutes.device_number`.
    """

    axis: str | tuple[str, ...]
    directions: tuple[RingDirection, ...]
    devices: tuple[int, ...] = ()


def hops_of(streams: Sequence[Stream]) -> tuple[int, int]:
    """The most hops of any direction of any stream, and the fewest; zeros without directions."""
    hops = [direction.hops for stream in streams for direction in stream.directions]
    return max(hops, default=0), min(hops, default=0)
