"""The reduce-scatter as a ring: partial sums that gain a term on every device that they pass.

The barriers depend on what a term costs:

- Terms that are slices of an array (`dots=False`): a superstep ends with each hop.
- Terms that are dots (`dots=True`): before the sums of a turn are sent, what the turn before has sent
  must have arrived, so that the dots of a turn overlap with the hops of the one before.
- Terms that are dots, in one stream of one direction: there is no other turn whose hop a dot could
  overlap with, so the dot is computed while the sum arrives, and added to it afterwards.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from .permutes import shift
from .slicing import Index
from .steps import Steps, finish
from .streams import RingDirection, Stream, hops_of

# partial(stream number, direction, offset, sums): this device's term for the shard of the device
# `offset` places further along the stream's ring, added to the `sums` that arrived for it. The
# direction is None for all of the device's own shard.
Partial = Callable[[int, RingDirection | None, Index, Sequence[jax.Array]], jax.Array]

# join(stream number, own, arrivals): the stream's result, from the device's own term, or None where
# that is still to be computed, and the sum that each direction brought.
Join = Callable[[int, jax.Array | None, list[tuple[RingDirection, jax.Array]]], jax.Array]

# The sum that each direction of each stream has; None before the first term and while it is added.
Sums = list[list[Any]]


class _Sender(NamedTuple):
    """A direction of a stream, by their numbers."""

    stream: int
    direction: int


def reduce_scatter(
    streams: Sequence[Stream],
    partial: Partial,
    join: Join,
    *,
    wire: Callable[[jax.Array], jax.Array],
    rolled: bool,
    dots: bool,
) -> Steps:
    """Reduce-scatters shards whose terms `partial` computes just before they are sent.

    The term of the device that is furthest away in a direction comes first, those of the devices on
    the way are added in order, and the device's own comes last.

    Args:
      streams: the rings.
      partial: computes a term.
      join: adds what arrived.
      wire: converts a partial sum to what is sent.
      rolled: whether the hops that all directions have are a loop in the program.
      dots: whether a term is a dot, which overlaps with hops.

    Returns:
      A list, with the result of each stream.
    """
    ring = _Ring(streams, partial, wire, dots)
    last, common = hops_of(streams)
    sums: Sums = [[None] * len(stream.directions) for stream in streams]
    hop = last
    while hop > common:
        sums = yield from ring.superstep(sums, hop)
        hop -= 1
    if rolled and common > 2:
        every = ring.turns(common)
        sums = yield from ring.send(sums, common, every)

        def body(sums: Sums, hop: Any) -> tuple[Sums, None]:
            return finish(ring.send(sums, hop, every)), None

        sums, _ = lax.scan(body, sums, jnp.arange(common - 1, 0, -1, dtype=jnp.int32))
        hop = 0
    while hop >= 1:
        sums = yield from ring.superstep(sums, hop)
        hop -= 1
    own: list[jax.Array | None] = [None] * len(streams)
    if dots and last and len(streams) == 1:
        # The own term overlaps with the last hop; the own terms of several streams with the last hops
        # of one another.
        own, sums = yield [partial(0, None, 0, ())], sums
    return [
        join(s, own[s], list(zip(stream.directions, sums[s], strict=True)))
        for s, stream in enumerate(streams)
    ]


@dataclasses.dataclass(frozen=True)
class _Ring:
    """How the sums of one reduce-scatter are added up and sent; the arguments of `reduce_scatter`."""

    streams: Sequence[Stream]
    partial: Partial
    wire: Callable[[jax.Array], jax.Array]
    dots: bool

    def turns(self, hop: int) -> list[list[_Sender]]:
        """The senders of sums that are `hop` hops from home, in turns.

        The directions of a stream use different links. They send in one turn, if there are other
        streams. Else the one with fewer hops sends first: the other one sent last, and what it sent
        arrives meanwhile.
        """
        senders = [
            _Sender(s, i)
            for s, stream in enumerate(self.streams)
            for i, direction in enumerate(stream.directions)
            if direction.hops >= hop
        ]
        if len(self.streams) > 1:
            return [list(turn) for _, turn in itertools.groupby(senders, key=lambda t: t.stream)]
        last, _ = hops_of(self.streams)
        senders.sort(key=lambda sender: self._direction(sender).hops == last)
        return [[sender] for sender in senders]

    def superstep(self, sums: Sums, hop: int) -> Steps:
        """The sums after one hop. Dots end supersteps of their own; else the hop ends one."""
        sums = yield from self.send(sums, hop, self.turns(hop))
        return sums if self.dots else (yield sums)

    def send(self, sums: Sums, offset: Index, turns: list[list[_Sender]]) -> Steps:
        """Adds this device's terms to the sums that are `offset` hops from home, and sends them."""
        sums = [list(by_direction) for by_direction in sums]
        for turn in turns:
            terms = []
            for sender in turn:
                arrived, sums[sender.stream][sender.direction] = (
                    sums[sender.stream][sender.direction],
                    None,
                )
                terms.append((yield from self._add(sender, offset, arrived)))
            if self.dots:
                # The sums that the turn before sent arrive before the next dot starts.
                terms, sums = yield terms, sums
            for sender, term in zip(turn, terms, strict=True):
                step = self._direction(sender).step
                axis = self.streams[sender.stream].axis
                sums[sender.stream][sender.direction] = shift(self.wire(term), axis, step)
        return sums

    def _add(self, sender: _Sender, offset: Index, arrived: jax.Array | None) -> Steps:
        """This device's term, added to the sum that arrived, if there is one."""
        direction = self._direction(sender)
        place = sender.stream, direction, direction.step * offset
        if arrived is None:
            return self.partial(*place, ())
        if self.dots and self._is_single:
            # Nothing else overlaps with this hop, so the dot must not wait for the sum.
            term, before = yield self.partial(*place, ()), arrived
            return term + before.astype(term.dtype)
        # The sum has arrived, so a dot that adds to it waits for nothing.
        return self.partial(*place, (arrived,))

    @property
    def _is_single(self) -> bool:
        """Whether there is one stream, with one direction."""
        return sum(len(stream.directions) for stream in self.streams) == 1

    def _direction(self, sender: _Sender) -> RingDirection:
        return self.streams[sender.stream].directions[sender.direction]
