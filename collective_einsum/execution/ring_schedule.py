"""The ring schedules: a dot for every hop, of the shard that arrived or for the sum that leaves."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import EinsumCollective, Operation
from ..rings import slicing
from ..rings.axis_rings import AxisRing, hamiltonian_rings, major_ring
from ..rings.multi_axis import scatter_stage
from ..rings.ring_gather import gather
from ..rings.slicing import Index, Span
from ..rings.steps import finish, together
from ..rings.streams import RingDirection
from .local_ops import (
    as_sent,
    in_rows,
    lax_gather,
    lax_scatter,
    multiply,
    products,
    sum_as_sent,
)


def run(op: Operation, lhs: list[jax.Array], rhs: list[jax.Array]) -> list[jax.Array]:
    """The local results of `op` under a ring schedule, before the last conversion.

    An einsum with collectives before and after goes round the ring of one of them; the other one has no
    dots left to overlap with and is lax's own collective, which needs no assembling.
    """
    ring = op.ring(op.schedule)
    if ring is None:
        return products(op, lhs, rhs)
    if ring is op.gather:
        results = _gather(op, ring, lhs[0], rhs)
        if op.scatter is None:
            return results
        return [lax_scatter(op, y, op.scatter.axes) for y in results]
    if op.gather is not None:
        lhs = [lax_gather(op, lhs[0], op.gather.axes, op.lhs.index(op.gather.label))]
    return _scatter(op, ring, lhs, rhs)


def _gather(
    op: Operation, collective: EinsumCollective, x: jax.Array, rhs: list[jax.Array]
) -> list[jax.Array]:
    """A dot for every slice of a shard of x that arrives.

    Over several axes, where rhs must be sliced along the gathered label, the minor axes are gathered
    first and the ring is that of the major one, so that the slices are long. Else Hamiltonian rings go
    through all devices, each with its stream of every shard.
    """
    dim, axes = op.lhs.index(collective.label), collective.axes
    sent = as_sent(op, x)
    rings: Sequence[AxisRing]
    if len(axes) > 1 and collective.label not in op.rhs:
        rings = hamiltonian_rings(axes, op.closed)[: x.shape[dim]]
    else:
        rings = [major_ring(axes)]
        if len(axes) > 1:
            sent = lax.all_gather(sent, axes[1:], axis=dim, tiled=True)
            sent = in_rows(op, sent, x, rhs)
    shard = sent.shape[dim]
    spans = slicing.chunk_spans(shard, len(rings), MATRIX_TILE)
    shards = [slicing.slice_shards(sent, dim, shard, span) for span in spans]
    streams = [
        ring.stream(op.schedule.direction, span.size)
        for ring, span in zip(rings, spans, strict=True)
    ]
    dots = _GatherDots(op=op, label=collective.label, rings=rings, spans=spans, rhs=rhs, lhs=x)
    rolled = all(op.schedule.rolls(ring.n) for ring in rings)
    return finish(gather(streams, shards, dots.take, dots.multiply, rolled=rolled))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _GatherDots:
    """The dots of an all-gather's ring.

    Attributes:
      op: the einsum.
      label: the gathered label.
      rings: of each stream.
      spans: of each stream, its slice of every shard.
      rhs: the right operands.
      lhs: the device's own shard of the left operand.
    """

    op: Operation
    label: str
    rings: Sequence[AxisRing]
    spans: Sequence[Span]
    rhs: Sequence[jax.Array]
    lhs: jax.Array

    def take(self, sent: jax.Array, stream: int, direction: RingDirection) -> jax.Array:
        """The slice of a shard that a stream sends in one direction."""
        dim, size = self.op.lhs.index(self.label), self.spans[stream].size
        return slicing.slice_shards(sent, dim, size, direction.span)

    def multiply(
        self,
        results: Sequence[Any] | None,
        stream: int,
        direction: RingDirection | None,
        offset: Index,
        arrived: jax.Array,
    ) -> list[Any]:
        """The results, after the dots of what has arrived from the device `offset` further on."""
        start, size = self.spans[stream]
        if direction is not None:
            start, size = start + direction.start, direction.size
        span, ring, op = Span(start, size), self.rings[stream], self.op
        results = [None] * len(self.rhs) if results is None else results
        updated = []
        for result, right in zip(results, self.rhs, strict=True):
            if self.label in op.rhs:
                right = ring.read(right, op.rhs.index(self.label), offset, span)
            y = multiply(op, arrived.astype(self.lhs.dtype), right)
            if self.label in op.out:
                updated.append(self._written(result, y.astype(op.dtype), ring, offset, span))
            else:
                # The dot stands first, so that the compiler makes the addition a part of it.
                updated.append(y if result is None else y + result)
        return updated

    def _written(
        self, result: jax.Array | None, y: jax.Array, ring: AxisRing, offset: Index, span: Span
    ) -> jax.Array:
        """The result with the rows or columns `y` that a slice of a shard makes."""
        dim = self.op.out.index(self.label)
        if result is None:
            shard = sum(span.size for span in self.spans)
            result = slicing.uninitialized(y, dim, shard * ring.shards)
        return ring.write(result, y, dim, offset, span)


def _scatter(
    op: Operation, collective: EinsumCollective, lhs: list[jax.Array], rhs: list[jax.Array]
) -> list[jax.Array]:
    """A dot for every shard that is about to be sent; several results send in turns.

    Over several axes the ring is that of the major one, since the shards of a contiguous dimension are
    then contiguous; its result is scattered over the minor axes.
    """
    axes = collective.axes
    groups = [(lhs, [right]) for right in rhs] if op.form == "shared_lhs" else [(lhs, rhs)]
    rings = [major_ring(axes) for _ in groups]
    # Results may be of different widths.
    shards = [
        dict(zip(op.lhs + op.rhs, (*left[0].shape, *right[0].shape), strict=True))[collective.label]
        // ring.shards
        for (left, right), ring in zip(groups, rings, strict=True)
    ]

    def partial(
        stream: int, direction: RingDirection | None, offset: Index, sums: Sequence[jax.Array]
    ) -> jax.Array:
        span = Span(0, shards[stream]) if direction is None else direction.span

        def read(x: jax.Array, labels: str) -> jax.Array:
            if collective.label not in labels:
                return x
            return rings[stream].read(x, labels.index(collective.label), offset, span)

        left, right = groups[stream]
        if sums:
            # XLA:TPU adds the sums inside the loop of a dot that waits for all of them.
            left, *sums = together(left, *sums)
        left, right = [read(x, op.lhs) for x in left], [read(x, op.rhs) for x in right]
        (term,) = products(op, left, right)
        return sum((arrived.astype(term.dtype) for arrived in sums), term)

    results = finish(
        scatter_stage(
            rings,
            partial,
            op.out.index(collective.label),
            shards,
            op.schedule.direction,
            wire=functools.partial(sum_as_sent, op),
            rolls=op.schedule.rolls,
            dots=True,
        )
    )
    return [lax_scatter(op, y, axes[1:]) if len(axes) > 1 else y for y in results]
