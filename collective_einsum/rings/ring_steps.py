"""Ring steps over mesh axes: the only file that calls `lax.ppermute`.

A ring is walked in supersteps. In each, the shards that are in flight move one hop while the caller
computes with those that have arrived, and a barrier ends the step, so that the compiler cannot wait
for the hop first and compute afterwards.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..ops.schedule import Direction


@dataclasses.dataclass(frozen=True)
class Lane:
    """A part of every shard that moves one way round the ring: `hops` hops, `step` devices each."""

    step: int
    hops: int
    lo: int
    size: int


def lanes(n: int, direction: Direction, size: int) -> tuple[Lane, ...]:
    """The lanes of a ring of `n` devices whose shards are `size` long where they may be cut."""
    if direction == "latency":
        found = [Lane(1, n // 2, 0, size), Lane(-1, (n - 1) // 2, 0, size)]
    elif direction == "bidirectional":
        half = -(-size // 2)
        found = [Lane(1, n - 1, 0, half), Lane(-1, n - 1, half, size - half)]
    else:
        found = [Lane(1, n - 1, 0, size)]
    return tuple(lane for lane in found if lane.hops and lane.size)


def shift(x: Any, axis: str | tuple[str, ...], by: int, stops: Sequence[int] = ()) -> Any:
    """Every device's `x` handed to the device `by` places further along `axis`, or, over several
    axes, along the ring of `stops`, devices by `number`; the items of a list one after the other."""
    if isinstance(axis, str):
        stops = range(lax.axis_size(axis))
    pairs = [(stop, stops[(i + by) % len(stops)]) for i, stop in enumerate(stops)]

    def send(each: Any) -> Any:
        return jax.tree.map(lambda leaf: lax.ppermute(leaf, axis, pairs), each)

    if not isinstance(x, list):
        return send(x)
    arrived: list[Any] = []
    for each in x:
        if arrived:
            arrived[-1], each = together(arrived[-1], each)
        arrived.append(send(each))
    return arrived


def number(place: Mapping[str, int], axes: Sequence[str]) -> int:
    """A device by its place along each of `axes`, the first one major."""
    found = 0
    for axis in axes:
        found = found * lax.axis_size(axis) + place[axis]
    return found


def exchange(x: Any, axes: tuple[str, ...], by: tuple[int, ...]) -> Any:
    """Every device's `x` handed to the device `by[i]` places further along each `axes[i]`."""
    places_of = dict(zip(axes, by, strict=True))
    axes = in_mesh_order(axes)
    by = tuple(places_of[axis] for axis in axes)
    sizes = [lax.axis_size(axis) for axis in axes]
    places = list(itertools.product(*map(range, sizes)))
    number = {place: i for i, place in enumerate(places)}
    pairs = [
        (i, number[tuple((p + b) % n for p, b, n in zip(place, by, sizes, strict=True))])
        for place, i in number.items()
    ]
    return lax.ppermute(x, axes, pairs)


def reorder_shards(x: jax.Array, have: tuple[str, ...], want: tuple[str, ...]) -> jax.Array:
    """Sends the shards of a dimension that lie over the axes `have`, the first one major, so that they
    lie over `want`, the same axes in another order."""
    axes = in_mesh_order(have)
    sizes = [lax.axis_size(axis) for axis in axes]
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    sources, targets = (
        devices.transpose([axes.index(axis) for axis in order]).ravel().tolist()
        for order in (have, want)
    )
    return lax.ppermute(x, axes, list(zip(sources, targets, strict=True)))


def in_mesh_order(axes: tuple[str, ...]) -> tuple[str, ...]:
    """How lax.ppermute numbers devices, whatever the order of the tuple."""
    return tuple(sorted(axes, key=jax.sharding.get_abstract_mesh().axis_names.index))


def together(*values: Any) -> tuple[Any, ...]:
    """The values, none of them usable before all are there."""
    return lax.optimization_barrier(values)


# A collective in progress. It yields what it has in flight, and what it has computed, each time a
# superstep ends; it wants them back behind a barrier, and returns its result.
Steps = Generator[Any, Any, Any]


def finish(steps: Steps, state: Any = None) -> Any:
    """Runs a collective to its end by itself, from where it yielded what is now `state`."""
    while True:
        try:
            state = steps.send(state)
        except StopIteration as stop:
            return stop.value
        (state,) = together(state)


@dataclasses.dataclass(frozen=True)
class Strand:
    """A stream of shards round the ring of one axis, or of `stops` along several axes, in the order
    of the mesh; strands on several rings fill all their links."""

    axis: str | tuple[str, ...]
    lanes: tuple[Lane, ...]
    stops: tuple[int, ...] = ()


# consume(carry, strand number, lane, offset, piece): the piece came from the device `offset` places
# further along the strand's axis. lane is None for the device's own shard.
Consume = Callable[[Any, int, Lane | None, Any, Any], Any]


def gather(
    strands: Sequence[Strand],
    shards: Sequence[Any],
    cut: Callable[[Any, int, int, int], Any],
    consume: Consume,
    *,
    rolled: bool,
) -> Steps:
    """All-gathers the `shards`, one a strand, and folds every piece into a carry as it arrives.

    `cut(shard, strand number, lo, size)` takes a lane's part. Order of the fold: own shards, then
    hop by hop, strand by strand, the lanes in order. Returns the last carry.
    """
    hops = [lane.hops for strand in strands for lane in strand.lanes]
    last, common = max(hops, default=0), min(hops, default=0)

    def fly(flying: Any, hop: int) -> Any:
        return [
            [
                shift(piece, strand.axis, lane.step, strand.stops) if lane.hops >= hop else piece
                for lane, piece in zip(strand.lanes, pieces, strict=True)
            ]
            for strand, pieces in zip(strands, flying, strict=True)
        ]

    def arrive(carry: Any, flying: Any, offset: Any, hop: int) -> Any:
        for s, strand in enumerate(strands):
            for lane, piece in zip(strand.lanes, flying[s], strict=True):
                if lane.hops >= hop:
                    carry = consume(carry, s, lane, -lane.step * offset, piece)
        return carry

    flying = [
        [cut(shard, s, lane.lo, lane.size) for lane in strand.lanes]
        for s, (strand, shard) in enumerate(zip(strands, shards, strict=True))
    ]
    flying = fly(flying, 1) if last else flying
    carry = None
    for s, shard in enumerate(shards):
        carry = consume(carry, s, None, 0, shard)
    hop = 1
    if rolled and common > 2:

        def body(state: Any, hop: Any) -> Any:
            flying, carry = together(*state)
            return (fly(flying, 1), arrive(carry, flying, hop, 1)), None

        # By twos, the compiler need not copy what arrived to where the next hop departs from.
        unroll = 2 if common > 3 else 1
        hops_between = jnp.arange(1, common, dtype=jnp.int32)
        (flying, carry), _ = lax.scan(body, (flying, carry), hops_between, unroll=unroll)
        hop = common
    while hop <= last:
        flying, carry = yield flying, carry
        ahead = fly(flying, hop + 1) if hop < last else flying
        carry = arrive(carry, flying, hop, hop)
        flying, hop = ahead, hop + 1
    return carry


# partial(strand number, lane, offset, sums): what this device adds to the block of the device
# `offset` places further along the strand's axis, with those sums that came for it. lane is None for
# the device's own block, whole.
Partial = Callable[[int, Lane | None, Any, Sequence[Any]], Any]


def reduce_scatter(
    strands: Sequence[Strand],
    partial: Partial,
    join: Callable[[int, Any, list[tuple[Lane, Any]]], Any],
    *,
    wire: Callable[[Any], Any],
    rolled: bool,
    busy: bool,
) -> Steps:
    """Reduce-scatters blocks that `partial` computes just before they are sent; one result a strand.

    Sums travel as `wire(sum)`. For each block the term of the furthest device of a lane comes first,
    the devices on the way add theirs, and `join(strand number, own, arrivals)` adds what each lane
    brings to the device's own term, or makes that too where `own` is None. `busy` says that terms
    are worth a superstep of their own.
    """
    hops = [lane.hops for strand in strands for lane in strand.lanes]
    last, common = max(hops, default=0), min(hops, default=0)
    sums: list[list[Any]] = [[None] * len(strand.lanes) for strand in strands]

    def turns(hop: int) -> list[list[tuple[int, int]]]:
        """Who adds and sends at `hop`, in turns that each hide the hops of the one before.

        A strand's lanes, which use other links, take one turn, if there are other strands; else
        those that did not come last before come first.
        """
        active = [
            (s, i)
            for s, strand in enumerate(strands)
            for i, lane in enumerate(strand.lanes)
            if lane.hops >= hop
        ]
        if len(strands) > 1:
            return [list(group) for _, group in itertools.groupby(active, key=lambda t: t[0])]
        active.sort(key=lambda turn: strands[turn[0]].lanes[turn[1]].hops == last)
        return [[turn] for turn in active]

    def send(sums: Any, offset: Any, hop: int) -> Steps:
        """Adds this device's terms to the sums that are `hop` hops from home, and sends them on."""
        sums = [list(each) for each in sums]
        for turn in turns(hop):
            terms = []
            for s, i in turn:
                lane = strands[s].lanes[i]
                before, sums[s][i] = sums[s][i], None
                if before is None:
                    term = partial(s, lane, lane.step * offset, ())
                elif busy and len(hops) == 1:
                    # Nothing else hides this hop, so the term must not wait for the sum.
                    term, before = yield partial(s, lane, lane.step * offset, ()), before
                    term = term + before.astype(term.dtype)
                else:
                    # The sum is there already, and the addition costs no waiting.
                    term = partial(s, lane, lane.step * offset, (before,))
                terms.append(term)
            if busy:
                # What else is in flight lands before the next term is begun.
                terms, sums = yield terms, sums
            for (s, i), term in zip(turn, terms, strict=True):
                sums[s][i] = shift(wire(term), strands[s].axis, strands[s].lanes[i].step)
        return sums

    hop = last
    while hop > common:
        sums = yield from send(sums, hop, hop)
        sums = (yield sums) if not busy else sums
        hop -= 1
    if rolled and common > 2:
        sums = yield from send(sums, common, 1)

        def body(sums: Any, hop: Any) -> Any:
            return finish(send(sums, hop, 1)), None

        sums, _ = lax.scan(body, sums, jnp.arange(common - 1, 0, -1, dtype=jnp.int32))
        hop = 0
    while hop >= 1:
        sums = yield from send(sums, hop, 1)
        sums = (yield sums) if not busy else sums
        hop -= 1
    own: list[Any] = [None] * len(strands)
    if busy and last and len(strands) == 1:
        # The own term hides the last hop; those of several strands hide one another's.
        own, sums = yield [partial(0, None, 0, ())], sums
    return [
        join(s, own[s], list(zip(strand.lanes, sums[s], strict=True)))
        for s, strand in enumerate(strands)
    ]


def total(axes: tuple[str, ...]) -> int:
    """The number of devices along `axes`."""
    return math.prod(lax.axis_size(axis) for axis in axes)
