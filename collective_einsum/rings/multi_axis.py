"""All-gathers and reduce-scatters over one or several mesh axes, as steps that others can hide.

Over several axes a collective goes axis by axis. It is cut into as many strands as there are axes,
each taking them in another order, so that at any time all the axes' links carry traffic; the bytes
are those of the best possible algorithm, the hops the sum over the axes instead of the product.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..ops.schedule import Direction
from . import ring_steps as ring
from . import slicing as blocks
from .ring_steps import Lane, Steps, Strand
from .tours import Place, tours


def order(strand: int, axes: int) -> tuple[int, ...]:
    """The order in which a strand takes the axes: the last, with most to move, differs by strand."""
    return tuple((strand + 1 + i) % axes for i in range(axes))


def strand_dim(shape: tuple[int, ...], dim: int, axes: int) -> int | None:
    """The dimension along which to cut strands: not `dim`, long enough, the first of the longest."""
    if axes == 1:
        return None
    best = max(
        (d for d in range(len(shape)) if d != dim), key=lambda d: (shape[d], -d), default=None
    )
    return best if best is not None and shape[best] >= axes else None


class Around:
    """One stage of a strand: where the axis that it goes round stands among those of a dimension."""

    axis: str | tuple[str, ...]
    stops: tuple[int, ...] = ()

    def __init__(self, axes: tuple[str, ...], present: tuple[int, ...], j: int) -> None:
        self.axis = axes[j]
        self.n = lax.axis_size(self.axis)
        self.sizes = tuple(lax.axis_size(axes[i]) for i in present)
        self.at = present.index(j)
        self.blocks = math.prod(self.sizes)

    def index(self, offset: Any) -> Any:
        """The place along the axis of the device `offset` further on."""
        return (lax.axis_index(self.axis) + offset) % self.n

    def take(self, x: Any, dim: int, offset: Any, lo: int, size: int) -> Any:
        """`lo : lo + size` of each shard in the block of the device `offset` further on."""
        return blocks.take(x, dim, self.sizes, self.at, self.index(offset), lo, size)

    def put(
        self, x: Any, block: Any, dim: int, offset: Any, lo: int, size: int, also: Any = None
    ) -> Any:
        """`x` with what `take` would give replaced by `block`."""
        at = self.index(offset)
        return blocks.put(x, block, dim, self.sizes, self.at, at, lo, size, also)


class Touring(Around):
    """A ring through all devices of several axes, which pass whole shards of a dimension on."""

    def __init__(self, axes: tuple[str, ...], tour: Sequence[Place]) -> None:
        self.axis = ring.in_mesh_order(axes)
        places = [dict(zip(self.axis, place, strict=True)) for place in tour]
        self.stops = tuple(ring.number(place, self.axis) for place in places)
        self.n = self.blocks = len(tour)
        self.sizes, self.at = (self.n,), 0
        # Seen from this device, the devices from it on.
        numbers = np.asarray([ring.number(place, axes) for place in places])
        twice = jnp.asarray(np.tile(numbers, 2), jnp.int32)
        own = jnp.asarray(np.argsort(numbers), jnp.int32)[lax.axis_index(axes)]
        self.onward = lax.dynamic_slice(twice, (own,), (self.n,))

    def index(self, offset: Any) -> Any:
        """The number, the first axis major, of the device `offset` further on."""
        return self.onward[offset % self.n]


def touring(axes: tuple[str, ...], closed: Sequence[str] = ()) -> list[Touring]:
    """One or two rings through all devices of `axes`, which share no link; the ends of those that are
    `closed` are neighbours."""
    ordered = ring.in_mesh_order(axes)
    sizes = tuple(lax.axis_size(axis) for axis in ordered)
    return [Touring(axes, tour) for tour in tours(sizes, tuple(a in closed for a in ordered))]


def present_after(axes: int, strand: int, stage: int) -> tuple[int, ...]:
    """The axes, in canonical order, that a strand has gathered once `stage` is done."""
    return tuple(sorted(order(strand, axes)[: stage + 1]))


def major(axes: tuple[str, ...]) -> Around:
    """The ring of the first axis, every other one being gathered already."""
    return Around(axes, tuple(range(len(axes))), 0)


def all_gather(
    x: Any,
    axes: tuple[str, ...],
    dim: int,
    direction: Direction,
    *,
    rolls: Callable[[int], bool],
) -> Steps:
    """All-gathers `x` along `dim` over `axes`, the first one major; returns the whole."""
    if direction == "async":
        return (yield lax.all_gather(x, axes, axis=dim, tiled=True))
    along = strand_dim(x.shape, dim, len(axes))
    parts, starts = [x], None
    if along is not None:
        cuts = blocks.pieces_of(x.shape[along], len(axes))
        parts = [blocks.cut(x, along, *piece) for piece in cuts]
        starts = [(along, lo) for lo, _ in cuts]
    shards = [x.shape[dim]] * len(parts)
    for stage in range(len(axes)):
        last = stage == len(axes) - 1
        # The last stage writes all strands into one array.
        joined = (x.shape, starts) if last and starts is not None else None
        parts = yield from gather_stage(parts, axes, dim, direction, rolls, stage, shards, joined)
    return parts[0]


def gather_stage(
    parts: list[Any],
    axes: tuple[str, ...],
    dim: int,
    direction: Direction,
    rolls: Callable[[int], bool],
    stage: int,
    shards: list[int],
    joined: tuple[tuple[int, ...], list[tuple[int, int]]] | None = None,
) -> Steps:
    """One stage of every strand, whose shards of `dim` are `shards` long.

    With `joined`, the shape of the uncut operand and each strand's place in it, as (dimension,
    start), all strands end up in one array.
    """
    around = [
        Around(axes, present_after(len(axes), s, stage), order(s, len(axes))[stage])
        for s in range(len(parts))
    ]
    strands = [
        Strand(a.axis, ring.lanes(a.n, direction, shard))
        for a, shard in zip(around, shards, strict=True)
    ]

    def consume(carry: Any, s: int, lane: Lane | None, offset: Any, piece: Any) -> Any:
        carry = list(carry) if carry is not None else [None] * (1 if joined else len(parts))
        slot = 0 if joined else s
        if carry[slot] is None:
            full = list(joined[0] if joined else parts[s].shape)
            full[dim] = shards[s] * around[s].blocks
            carry[slot] = lax.empty(
                tuple(full), piece.dtype, out_sharding=jax.typeof(piece).sharding
            )
        place = (0, shards[s]) if lane is None else (lane.lo, lane.size)
        also = joined[1][s] if joined else None
        carry[slot] = around[s].put(carry[slot], piece, dim, offset, *place, also=also)
        return carry

    def cut(piece: Any, s: int, lo: int, size: int) -> Any:
        return blocks.cut_shards(piece, dim, shards[s], lo, size)

    rolled = all(rolls(a.n) for a in around)
    return (yield from ring.gather(strands, parts, cut, consume, rolled=rolled))


def reduce_scatter(
    x: Any,
    axes: tuple[str, ...],
    dim: int,
    direction: Direction,
    *,
    wire: Callable[[Any], Any],
    accumulator: Any,
    rolls: Callable[[int], bool],
) -> Steps:
    """Sums `x` over `axes`, in `accumulator`, and leaves each device its block of `dim`."""
    if direction == "async":
        n = ring.total(axes)
        x = blocks.split(wire(x), dim, (n, x.shape[dim] // n))
        x = yield lax.all_to_all(x, axes, dim, dim, tiled=True)
        # Written out, so that the compiler makes the sums a part of what they are used for.
        own, *others = (lax.index_in_dim(x, i, dim, keepdims=False) for i in range(n))
        return sum((other.astype(accumulator) for other in others), own.astype(accumulator))
    along = strand_dim(x.shape, dim, len(axes))
    parts = [x]
    if along is not None:
        parts = [blocks.cut(x, along, *p) for p in blocks.pieces_of(x.shape[along], len(axes))]
    for stage in reversed(range(len(axes))):
        around = [
            Around(axes, present_after(len(axes), s, stage), order(s, len(axes))[stage])
            for s in range(len(parts))
        ]

        def partial(
            s: int,
            lane: Lane | None,
            offset: Any,
            sums: Sequence[Any],
            parts: Any = parts,
            around: Any = around,
        ) -> Any:
            place = (0, parts[s].shape[dim] // around[s].blocks)
            place = place if lane is None else (lane.lo, lane.size)
            term = around[s].take(parts[s], dim, offset, *place).astype(accumulator)
            return sum((each.astype(accumulator) for each in sums), term)

        parts = yield from scatter_stage(
            around,
            partial,
            dim,
            [p.shape[dim] // a.blocks for p, a in zip(parts, around, strict=True)],
            direction,
            wire=wire,
            rolls=rolls,
            busy=False,
        )
    return parts[0] if along is None else jnp.concatenate(parts, axis=along)


def scatter_stage(
    around: list[Around],
    partial: ring.Partial,
    dim: int,
    shards: list[int],
    direction: Direction,
    *,
    wire: Callable[[Any], Any],
    rolls: Callable[[int], bool],
    busy: bool,
) -> Steps:
    """One stage of every strand, of terms that `partial` gives; `shards` are their block sizes."""
    strands = [
        Strand(a.axis, ring.lanes(a.n, direction, shard))
        for a, shard in zip(around, shards, strict=True)
    ]

    def join(s: int, own: Any, arrivals: list[tuple[Lane, Any]]) -> Any:
        whole = [term for lane, term in arrivals if lane.size == shards[s]]
        if own is None:
            own = partial(s, None, 0, whole)
        else:
            own = sum((term.astype(own.dtype) for term in whole), own)
        halves = [(lane, term) for lane, term in arrivals if lane.size != shards[s]]
        if not halves:
            return own
        pieces = [
            blocks.cut_shards(own, dim, shards[s], lane.lo, lane.size) + term.astype(own.dtype)
            for lane, term in halves
        ]
        return blocks.join_shards(pieces, dim, [lane.size for lane, _ in halves])

    rolled = all(rolls(a.n) for a in around)
    return (
        yield from ring.reduce_scatter(strands, partial, join, wire=wire, rolled=rolled, busy=busy)
    )


def all_to_all(x: Any, axes: tuple[str, ...], split: int, concat: int) -> Steps:
    """Block `i` of dimension `split` to device `i`; what arrives is joined along `concat`."""
    arriving = yield _straight(x, axes, split)
    n = len(arriving)
    shape = list(arriving[0].shape)
    shape.insert(concat, n)
    whole = lax.empty(tuple(shape), x.dtype)
    for by, block in zip(_offsets(axes), arriving, strict=True):
        whole = lax.dynamic_update_index_in_dim(whole, block, _device(axes, by, -1), concat)
    return blocks.merge(whole, concat, 2)


def straight_reduce_scatter(
    x: Any, axes: tuple[str, ...], dim: int, *, wire: Callable[[Any], Any], accumulator: Any
) -> Steps:
    """As `reduce_scatter`, every block straight to its device: more bytes, but in one superstep.

    The own block is rounded for the wire too, so that the dot need not write its result twice.
    """
    arriving = yield _straight(wire(x), axes, dim)
    own, *others = (block.astype(accumulator) for block in arriving)
    return sum(others, own)


def _straight(x: Any, axes: tuple[str, ...], dim: int) -> list[Any]:
    """The blocks of `dim` that every device has for this one, by `_offsets`, all in flight at once."""
    n = ring.total(axes)
    x = blocks.split(x, dim, (n, x.shape[dim] // n))
    arriving = []
    for by in _offsets(axes):
        block = lax.dynamic_index_in_dim(x, _device(axes, by, 1), dim, keepdims=False)
        arriving.append(ring.exchange(block, axes, by) if any(by) else block)
    return arriving


def _offsets(axes: tuple[str, ...]) -> list[tuple[int, ...]]:
    """The places further along `axes` of every device, this one first."""
    return list(itertools.product(*(range(lax.axis_size(axis)) for axis in axes)))


def _device(axes: tuple[str, ...], by: tuple[int, ...], sign: int) -> Any:
    """The number of the device `by` places further along `axes`, or, with sign -1, before."""
    at: Any = 0
    for axis, places in zip(axes, by, strict=True):
        at = at * lax.axis_size(axis) + (lax.axis_index(axis) + sign * places) % lax.axis_size(axis)
    return at
