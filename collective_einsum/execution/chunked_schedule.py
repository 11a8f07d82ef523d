"""The chunked schedule: collectives of some chunks overlap with the dots of others."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import EinsumCollective, Operation
from ..ops.feasibility import gathers_into_result
from ..ops.schedule import POINT_TO_POINT_DEVICES
from ..rings import multi_axis, point_to_point, slicing
from ..rings.all_reduce import all_reduce_steps
from ..rings.permutes import total
from ..rings.slicing import Span
from ..rings.steps import Steps, finish, together
from . import own_shard_first
from .in_flight import GatheredAhead, InFlight, Key
from .local_ops import (
    as_sent,
    in_rows,
    lax_gather,
    lax_scatter,
    multiply,
    products,
    scaled,
    sum_as_sent,
)


def run(
    op: Operation, lhs: list[jax.Array], rhs: list[jax.Array], scales: list[jax.Array]
) -> list[jax.Array]:
    """The local results of `op` under a chunked schedule, before the last conversion; `scales` are those
    of each rhs of an operation that is `scaled`, else none."""
    label, is_async = op.schedule.label, op.schedule.direction == "async"
    if len(op.schedule.proportions) == 1 and op.scatter is not None and not is_async:
        return _one_chunk(op, op.scatter, lhs, rhs)
    if op.gather is not None and is_async and gathers_into_result(op, label):
        results = own_shard_first.run(op, op.gather, lhs[0], rhs)
        return [finish(_scattered(op, y)) for y in results]
    return _pipeline(_chunks_of(op, lhs, rhs, scales))


def _one_chunk(
    op: Operation, collective: EinsumCollective, lhs: list[jax.Array], rhs: list[jax.Array]
) -> list[jax.Array]:
    """Each result is scattered, point to point, during the next one's dot.

    Nothing overlaps with the gather and the last scatter: they are lax's own, which need no assembling.
    """
    if op.gather is not None:
        lhs = [lax_gather(op, lhs[0], op.gather.axes, op.lhs.index(op.gather.label))]
    if op.form == "sum" or total(collective.axes) > POINT_TO_POINT_DEVICES:
        return [lax_scatter(op, y, collective.axes) for y in products(op, lhs, rhs)]
    dim, wire = op.out.index(collective.label), functools.partial(sum_as_sent, op)
    results, scattering, arriving = [], None, None
    for i, right in enumerate(rhs):
        y = multiply(op, lhs[0], right)
        if scattering is not None:
            arriving, y = together(arriving, y)
            results.append(finish(scattering, arriving))
        if i < len(rhs) - 1:
            scattering = point_to_point.reduce_scatter(
                y, collective.axes, dim, wire=wire, accumulator=op.accumulator
            )
            arriving = next(scattering)
    return [*results, lax_scatter(op, y, collective.axes)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chunks:
    """The operands of an einsum, and how a label of theirs is split into chunks.

    Attributes:
      op: the einsum.
      lhs: its left operands: for "shared_lhs" one.
      rhs: its right operands.
      scales: the scale of each right operand, the same for all chunks, or none.
      label: the label that is split; None for one chunk of everything.
      spans: the chunks of the label.
    """

    op: Operation
    lhs: list[jax.Array]
    rhs: list[jax.Array]
    scales: list[jax.Array]
    label: str | None
    spans: list[Span]

    def left(self, chunk: int) -> list[jax.Array]:
        """The chunk of each left operand."""
        return [self._slice(x, self.op.lhs, self.spans[chunk]) for x in self.lhs]

    def right(self, chunk: int) -> list[jax.Array]:
        """The chunk of each right operand."""
        is_async = self.op.schedule.direction == "async"
        cut = self._slice_of_weight if is_async else self._slice
        return [cut(w, self.op.rhs, self.spans[chunk]) for w in self.rhs]

    def product(self, place: int, left: list[jax.Array], right: list[jax.Array]) -> jax.Array:
        """The product of a chunk, which is a chunk of the result in this place. Its scale becomes a part
        of its dot, where scaling the whole result would be a pass over memory."""
        y = products(self.op, left, right)[0]
        return scaled(self.op, y, self.scales[place]) if self.scales else y

    def join(self, results: Sequence[jax.Array]) -> jax.Array:
        """One result, from its chunks: put together, or added up where the label is contracted."""
        if self.label is None:
            return results[0]
        if self.label in self.op.out:
            return slicing.put_together(results, self.op.out.index(self.label))
        return sum(results[1:], start=results[0])

    def _slice(self, x: jax.Array, labels: str, span: Span) -> jax.Array:
        if self.label is None or self.label not in labels:
            return x
        return slicing.slice_dim(x, labels.index(self.label), span)

    def _slice_of_weight(self, w: jax.Array, labels: str, span: Span) -> jax.Array:
        """A chunk of the columns of a weight, which starts where the compiler cannot know.

        XLA:TPU copies a slice with a known start before the matmul, where several read one matrix of a
        scanned stack: 182 us for bf16 [4608, 4608] on v4.
        """
        label = self.label
        if label is None or label not in labels or label not in self.op.out:
            return self._slice(w, labels, span)
        dim = labels.index(label)
        if w.dtype.itemsize == 1 or span.size == w.shape[dim]:
            return self._slice(w, labels, span)
        # H3 in docs/compiler.md.
        start = lax.optimization_barrier(jnp.int32(span.start))
        return lax.dynamic_slice_in_dim(w, start, span.size, axis=dim)


def _chunks_of(
    op: Operation, lhs: list[jax.Array], rhs: list[jax.Array], scales: list[jax.Array]
) -> _Chunks:
    # A transposed einsum may scatter, or sum over, the label whose slices were gathered one by one:
    # that label is not split.
    label = None if op.schedule.label in op.moved_labels else op.schedule.label
    sizes = dict(zip(op.lhs + op.rhs, (*lhs[0].shape, *rhs[0].shape), strict=True))
    spans = [Span(0, 0)]
    if label is not None:
        spans = slicing.chunk_spans(sizes[label], op.schedule.proportions, MATRIX_TILE)
    return _Chunks(op=op, lhs=lhs, rhs=rhs, scales=scales, label=label, spans=spans)


def _pipeline(chunks: _Chunks) -> list[jax.Array]:
    """While a chunk is multiplied, the next one is gathered, and the results of others scattered."""
    op, count = chunks.op, len(chunks.spans)
    in_flight = InFlight(barriers=op.schedule.direction != "async")
    if op.form == "shared_lhs":
        gathers = [_gathered(op, chunks.left(chunk)[0]) for chunk in range(count)]
        gathered = GatheredAhead(in_flight, gathers)
    for chunk in range(count):
        if op.form == "shared_lhs":
            left = [in_rows(op, gathered.take(chunk), chunks.lhs[0], chunks.rhs)]
            pairs = [(left, [right]) for right in chunks.right(chunk)]
        else:
            pairs = [(chunks.left(chunk), chunks.right(chunk))]
        for i, (left, right) in enumerate(pairs):
            y = chunks.product(i, left, right)
            # A result that is sent waits until the links are free; others become part of the whole
            # result by their dot.
            arrived = in_flight.advance(y)
            sent = op.scatter is not None or op.reduce
            in_flight.start(Key("scatter", chunk, i), _scattered(op, arrived if sent else y))
    in_flight.finish()
    results = len(chunks.rhs) if op.form == "shared_lhs" else 1
    return [
        chunks.join([in_flight.done[Key("scatter", chunk, i)] for chunk in range(count)])
        for i in range(results)
    ]


def _gathered(op: Operation, x: jax.Array) -> Steps:
    """The all-gather of a left operand, if the einsum has one, as steps."""
    if op.gather is None:
        return x
    dim = op.lhs.index(op.gather.label)
    moved = yield from multi_axis.all_gather(
        as_sent(op, x), op.gather.axes, dim, op.schedule.direction, rolls=op.schedule.rolls
    )
    return moved.astype(x.dtype)


def _scattered(op: Operation, y: jax.Array) -> Steps:
    """The collectives after the einsum of a local result, as steps."""
    rolls, direction = op.schedule.rolls, op.schedule.direction
    wire = functools.partial(sum_as_sent, op)
    if op.scatter is not None:
        y = yield from multi_axis.reduce_scatter(
            y,
            op.scatter.axes,
            op.out.index(op.scatter.label),
            direction,
            wire=wire,
            accumulator=op.accumulator,
            rolls=rolls,
        )
    if op.reduce:
        y = yield from all_reduce_steps(
            y, op.reduce, direction, wire=wire, accumulator=op.accumulator, rolls=rolls
        )
    return y
