"""The all-gather as a ring: shards that are used as they arrive.

In each superstep the shards in flight move one hop while the caller computes with those that have
arrived. A barrier ends the step, so that the compiler cannot wait for the hop first and compute
afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from .permutes import shift
from .slicing import Index
from .steps import Steps, together
from .streams import RingDirection, Stream, hops_of

# consume(carry, stream number, direction, offset, slice): the next carry, from a slice of the shard of
# the device `offset` places further along the stream's ring. The direction is None, and the slice the
# shard itself, for the device's own shard; the first carry is None.
Consume = Callable[[Any, int, RingDirection | None, Index, Any], Any]

# The slices that each direction of each stream has in flight.
Flying = list[list[Any]]


def gather(
    streams: Sequence[Stream],
    shards: Sequence[Any],
    take: Callable[[Any, int, RingDirection], Any],
    consume: Consume,
    *,
    rolled: bool,
) -> Steps:
    """All-gathers the `shards` and folds every slice into a carry as it arrives.

    The own shards come first, then hop by hop the streams in order, of each the directions in order.

    Args:
      streams: the rings.
      shards: the device's own shard, a pytree, for each stream.
      take: `take(shard, stream number, direction)` is the slice that is sent in a direction.
      consume: the fold.
      rolled: whether the hops that all directions have are a loop in the program.

    Returns:
      The last carry.
    """
    last, common = hops_of(streams)
    flying = [
        [take(shard, s, direction) for direction in stream.directions]
        for s, (stream, shard) in enumerate(zip(streams, shards, strict=True))
    ]
    flying = _hop(streams, flying, 1) if last else flying
    carry = None
    for s, shard in enumerate(shards):
        carry = consume(carry, s, None, 0, shard)
    hop = 1
    if rolled and common > 2:

        def body(state: tuple[Flying, Any], hop: Any) -> tuple[tuple[Flying, Any], None]:
            flying, carry = together(*state)
            ahead = _hop(streams, flying, 1)
            return (ahead, _fold(streams, consume, carry, flying, hop, 1)), None

        # With two hops in the body, the compiler need not copy what arrived to where the next hop
        # departs from.
        unroll = 2 if common > 3 else 1
        hops_between = jnp.arange(1, common, dtype=jnp.int32)
        (flying, carry), _ = lax.scan(body, (flying, carry), hops_between, unroll=unroll)
        hop = common
    while hop <= last:
        flying, carry = yield flying, carry
        ahead = _hop(streams, flying, hop + 1) if hop < last else flying
        carry = _fold(streams, consume, carry, flying, hop, hop)
        flying, hop = ahead, hop + 1
    return carry


def _hop(streams: Sequence[Stream], flying: Flying, hop: int) -> Flying:
    """`flying` sent one device further, in the directions that have at least `hop` hops."""
    return [
        [
            shift(sent, stream.axis, direction.step, stream.devices)
            if direction.hops >= hop
            else sent
            for direction, sent in zip(stream.directions, slices, strict=True)
        ]
        for stream, slices in zip(streams, flying, strict=True)
    ]


def _fold(
    streams: Sequence[Stream],
    consume: Consume,
    carry: Any,
    flying: Flying,
    offset: Index,
    hop: int,
) -> Any:
    """The carry after all that hop number `offset` brought, in the directions with at least `hop`."""
    for s, stream in enumerate(streams):
        for direction, arrived in zip(stream.directions, flying[s], strict=True):
            if direction.hops >= hop:
                carry = consume(carry, s, direction, -direction.step * offset, arrived)
    return carry
