"""All-gathers and reduce-scatters over one or several mesh axes, as steps that others can overlap.

Over several axes a collective goes axis by axis, in stages. The array is sliced into as many streams
as there are axes, each of which takes the axes in another order, so that all axes' links carry data at
any time: the bytes are those of the best possible algorithm, the hops the sum over the axes instead of
the product.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from ..ops.schedule import Direction
from . import slicing
from .axis_rings import AxisRing, stage_rings
from .permutes import total
from .ring_gather import gather
from .ring_reduce_scatter import Partial
from .ring_reduce_scatter import reduce_scatter as ring_reduce_scatter
from .slicing import Index, Span
from .steps import Steps
from .streams import RingDirection


class _StreamSlice(NamedTuple):
    """One stream's slice of an operand: the dimension, and the part of it."""

    dim: int
    span: Span


def stream_dim(shape: tuple[int, ...], dim: int, axes: int) -> int | None:
    """The dimension that is sliced into a stream for each of several axes.

    It is not `dim`, along which the collective is, but the first of the longest others, if that has an
    element for each stream; else None.
    """
    if axes == 1:
        return None
    longest = max(
        (d for d in range(len(shape)) if d != dim), key=lambda d: (shape[d], -d), default=None
    )
    return longest if longest is not None and shape[longest] >= axes else None


def _stream_slices(shape: tuple[int, ...], dim: int, axes: int) -> list[_StreamSlice] | None:
    """The slice of each stream; None for one stream, of the array as it is."""
    along = stream_dim(shape, dim, axes)
    if along is None:
        return None
    return [_StreamSlice(along, span) for span in slicing.chunk_spans(shape[along], axes)]


def _sliced(x: jax.Array, slices: list[_StreamSlice] | None) -> list[jax.Array]:
    return [x] if slices is None else [slicing.slice_dim(x, dim, span) for dim, span in slices]


def all_gather(
    x: jax.Array,
    axes: tuple[str, ...],
    dim: int,
    direction: Direction,
    *,
    rolls: Callable[[int], bool],
) -> Steps:
    """All-gathers `x` along `dim` over `axes`, the first one major.

    Args:
      x: the device's own shard.
      axes: the mesh axes.
      dim: the dimension along which shards are joined.
      direction: of the rings, or "async" for lax's own collective.
      rolls: whether a ring of so many devices is one loop in the program.

    Returns:
      The array whose shards were gathered, in the dtype of `x`.
    """
    if direction == "async":
        return (yield lax.all_gather(x, axes, axis=dim, tiled=True))
    slices = _stream_slices(x.shape, dim, len(axes))
    operands = _sliced(x, slices)
    for stage in range(len(axes)):
        # The last stage writes all streams into one array.
        joined = slices if stage == len(axes) - 1 else None
        gather_stage = _GatherStage(
            rings=stage_rings(axes, len(operands), stage),
            operands=operands,
            dim=dim,
            shard=x.shape[dim],
            shape=x.shape,
            joined=joined,
        )
        operands = yield from gather_stage.steps(direction, rolls)
    return operands[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GatherStage:
    """One stage of an all-gather, in which each stream goes round one ring.

    Attributes:
      rings: of each stream.
      operands: what each stream has gathered in the stages before.
      dim: the dimension along which shards are joined.
      shard: the length of each device's shard in that dimension.
      shape: of the device's own shard, before it is sliced into streams.
      joined: the streams' slices, if all are written into one array; else each has an array of its own.
    """

    rings: Sequence[AxisRing]
    operands: Sequence[jax.Array]
    dim: int
    shard: int
    shape: tuple[int, ...]
    joined: Sequence[_StreamSlice] | None

    def steps(self, direction: Direction, rolls: Callable[[int], bool]) -> Steps:
        """Runs the stage; returns a list of one array, or of one for each stream."""
        streams = [ring.stream(direction, self.shard) for ring in self.rings]
        rolled = all(rolls(ring.n) for ring in self.rings)
        return (yield from gather(streams, self.operands, self._take, self._write, rolled=rolled))

    def _take(self, operand: jax.Array, stream: int, direction: RingDirection) -> jax.Array:
        return slicing.slice_shards(operand, self.dim, self.shard, direction.span)

    def _write(
        self,
        results: Sequence[Any] | None,
        stream: int,
        direction: RingDirection | None,
        offset: Index,
        arrived: jax.Array,
    ) -> list[Any]:
        """The results with what arrived for a stream written to its place."""
        if results is None:
            results = [None] * (1 if self.joined else len(self.operands))
        results, place = list(results), 0 if self.joined else stream
        if results[place] is None:
            results[place] = self._uninitialized(stream, arrived)
        span = Span(0, self.shard) if direction is None else direction.span
        start = (self.joined[stream].dim, self.joined[stream].span.start) if self.joined else None
        results[place] = self.rings[stream].write(
            results[place], arrived, self.dim, offset, span, start
        )
        return results

    def _uninitialized(self, stream: int, like: jax.Array) -> jax.Array:
        shape = list(self.shape if self.joined else self.operands[stream].shape)
        shape[self.dim] = self.shard * self.rings[stream].shards
        return lax.empty(tuple(shape), like.dtype, out_sharding=jax.typeof(like).sharding)


def reduce_scatter(
    x: jax.Array,
    axes: tuple[str, ...],
    dim: int,
    direction: Direction,
    *,
    wire: Callable[[jax.Array], jax.Array],
    accumulator: DTypeLike,
    rolls: Callable[[int], bool],
) -> Steps:
    """Sums `x` over `axes` and leaves each device its shard of `dim`, the first axis major.

    Args:
      x: the local summand.
      axes: the mesh axes.
      dim: the dimension that is scattered.
      direction: of the rings, or "async" for lax's all-to-all and a local sum.
      wire: converts a partial sum to what is sent.
      accumulator: the dtype in which partial sums are added.
      rolls: whether a ring of so many devices is one loop in the program.

    Returns:
      The device's shard of the sum, in the accumulator's dtype.
    """
    if direction == "async":
        n = total(axes)
        x = slicing.split(wire(x), dim, (n, x.shape[dim] // n))
        x = yield lax.all_to_all(x, axes, dim, dim, tiled=True)
        # One addition for each term, so that the compiler makes them a part of what they are used for.
        own, *others = (lax.index_in_dim(x, i, dim, keepdims=False) for i in range(n))
        return sum((other.astype(accumulator) for other in others), own.astype(accumulator))
    slices = _stream_slices(x.shape, dim, len(axes))
    operands = _sliced(x, slices)
    for stage in reversed(range(len(axes))):
        rings = stage_rings(axes, len(operands), stage)
        operands = yield from scatter_stage(
            rings,
            functools.partial(_slice_term, operands, rings, dim, accumulator),
            dim,
            [y.shape[dim] // ring.shards for y, ring in zip(operands, rings, strict=True)],
            direction,
            wire=wire,
            rolls=rolls,
            dots=False,
        )
    return operands[0] if slices is None else jnp.concatenate(operands, axis=slices[0].dim)


def _slice_term(
    operands: Sequence[jax.Array],
    rings: Sequence[AxisRing],
    dim: int,
    accumulator: DTypeLike,
    stream: int,
    direction: RingDirection | None,
    offset: Index,
    sums: Sequence[jax.Array],
) -> jax.Array:
    """A `Partial` whose terms are slices of arrays."""
    operand, ring = operands[stream], rings[stream]
    shard = operand.shape[dim] // ring.shards
    span = Span(0, shard) if direction is None else direction.span
    term = ring.read(operand, dim, offset, span).astype(accumulator)
    return sum((arrived.astype(accumulator) for arrived in sums), term)


def scatter_stage(
    rings: Sequence[AxisRing],
    partial: Partial,
    dim: int,
    shards: Sequence[int],
    direction: Direction,
    *,
    wire: Callable[[jax.Array], jax.Array],
    rolls: Callable[[int], bool],
    dots: bool,
) -> Steps:
    """One stage of a reduce-scatter, in which each stream goes round one ring.

    Args:
      rings: of each stream.
      partial: computes the terms.
      dim: the dimension that is scattered.
      shards: how long each stream's shard of it is.
      direction: of the schedule.
      wire: converts a partial sum to what is sent.
      rolls: whether a ring of so many devices is one loop in the program.
      dots: whether a term is a dot, which overlaps with hops.

    Returns:
      A list, with the result of each stream.
    """
    streams = [ring.stream(direction, shard) for ring, shard in zip(rings, shards, strict=True)]

    def join(
        stream: int, own: jax.Array | None, arrivals: list[tuple[RingDirection, jax.Array]]
    ) -> jax.Array:
        shard = shards[stream]
        unsliced = [term for way, term in arrivals if way.size == shard]
        if own is None:
            own = partial(stream, None, 0, unsliced)
        else:
            own = sum((term.astype(own.dtype) for term in unsliced), own)
        halves = [(way, term) for way, term in arrivals if way.size != shard]
        if not halves:
            return own
        sums = [
            slicing.slice_shards(own, dim, shard, way.span) + term.astype(own.dtype)
            for way, term in halves
        ]
        return slicing.join_shards(sums, dim, [way.size for way, _ in halves])

    rolled = all(rolls(ring.n) for ring in rings)
    return (
        yield from ring_reduce_scatter(streams, partial, join, wire=wire, rolled=rolled, dots=dots)
    )
