"""What is computed between the public functions and the ring: one einsum, its collectives, a schedule.

An operation has two forms. "each": one lhs, gathered or not, times every rhs, one result for each.
"sum": the products of lhs and rhs pairs, added up. Each form is the transpose of the other.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from opt_einsum import parser as oe_parser

from . import blocks, ring, stages
from .collective import Collective, all_reduce_steps
from .primitive import apply, checks_vma
from .ring import Lane, Steps
from .schedule import Schedule


@dataclasses.dataclass(frozen=True)
class End:
    """A collective at one end: the label it shards and the axes it goes over."""

    label: str
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One einsum and the collectives at its ends, but for the operands; hashable.

    `gather` is of the lhs. `reduce` are the axes of an all-reduce of the result.
    """

    form: Literal["each", "sum"]
    lhs: str
    rhs: str
    out: str
    gather: End | None
    scatter: End | None
    reduce: tuple[str, ...]
    schedule: Schedule
    precision: Any
    accumulator: Any
    dtype: Any
    sum_wire: Any

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes of the collectives."""
        ends = [end.axes for end in (self.gather, self.scatter) if end is not None]
        return sum(ends, ()) + self.reduce

    @property
    def summed(self) -> tuple[str, ...]:
        """The axes over which results are equal afterwards."""
        return self.reduce

    def product(self, lhs: Any, rhs: Any) -> Any:
        """The einsum of two local pieces, in the accumulator's dtype."""
        if lhs.dtype != rhs.dtype:
            wide = _common(lhs.dtype, rhs.dtype, self.accumulator)
            lhs, rhs = lhs.astype(wide), rhs.astype(wide)
        return jnp.einsum(
            f"{self.lhs},{self.rhs}->{self.out}",
            lhs,
            rhs,
            precision=self.precision,
            preferred_element_type=self.accumulator,
        )

    def wire(self, total: Any) -> Any:
        """Partial sums as they travel."""
        return total.astype(self.sum_wire)

    def moving(self, x: Any) -> Any:
        """The gathered operand as it travels."""
        floating = jnp.issubdtype(x.dtype, jnp.inexact)
        return x.astype(self.schedule.wire_dtype) if self.schedule.wire_dtype and floating else x

    def run(self, *operands: Any) -> list[Any]:
        """The results, on local shards: of "each", one for every rhs; of "sum", one."""
        count = 1 if self.form == "each" else len(operands) // 2
        lhs, rhs = list(operands[:count]), list(operands[count:])
        with jax.named_scope(self._scope()):
            if self.schedule.kind == "blocking":
                results = _blocking(self, lhs, rhs)
            elif self.schedule.kind == "chunked":
                results = _chunked(self, lhs, rhs)
            else:
                results = _ringed(self, lhs, rhs)
            return [result.astype(self.dtype) for result in results]

    def tangents(self, operands: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """One term for each operand that moves; see `primitive.Op`."""
        lefts = 1 if self.form == "each" else len(operands) // 2
        lhs, rhs = operands[:lefts], operands[lefts:]
        dlhs, drhs = tangents[:lefts], tangents[lefts:]
        totals: list[Any] = [None] * (len(rhs) if self.form == "each" else 1)

        def add(where: Sequence[int], values: Sequence[Any]) -> None:
            for i, value in zip(where, values, strict=True):
                totals[i] = value if totals[i] is None else totals[i] + value

        for a, b in ((dlhs, rhs), (lhs, drhs)):
            if self.form == "each":
                moved = [i for i, each in enumerate(b) if each is not None]
                if a[0] is not None and moved:
                    add(moved, apply(self, a[0], *(b[i] for i in moved)))
            else:
                moved = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
                if moved:
                    add([0], apply(self, *(a[i] for i in moved), *(b[i] for i in moved)))
        return totals

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """The mirrored operation; see `primitive.Op`."""
        lefts = 1 if self.form == "each" else len(operands) // 2
        lhs, rhs = operands[:lefts], operands[lefts:]
        cts = [ct.astype(self.dtype) for ct in cotangents]
        if self.reduce and not checks_vma(self.reduce):
            # As lax.psum, which is its own transpose where replication is not tracked.
            cts = [lax.psum(ct, self.reduce) for ct in cts]
        plain = dataclasses.replace(self, reduce=())
        if any(each is None for each in lhs):
            return plain._to_lhs(cts, rhs) + [None] * len(rhs)
        return [None] * lefts + plain._to_rhs(cts, lhs, [each is None for each in rhs])

    def _to_lhs(self, cts: Sequence[Any], rhs: Sequence[Any]) -> list[Any]:
        mirrored = dataclasses.replace(
            self, lhs=self.out, rhs=self.rhs, out=self.lhs, gather=self.scatter, scatter=self.gather
        )
        if self.form == "sum":
            return apply(dataclasses.replace(mirrored, form="each"), cts[0], *rhs)
        if self.scatter is None or len(cts) == 1:
            form = "sum" if self.scatter is None else "each"
            return apply(dataclasses.replace(mirrored, form=form), *cts, *rhs)
        # Both ends and several results: each is gathered before its product.
        wholes = [self._whole(ct, self.out, self.scatter) for ct in cts]
        return apply(dataclasses.replace(mirrored, form="sum", gather=None), *wholes, *rhs)

    def _to_rhs(
        self, cts: Sequence[Any], lhs: Sequence[Any], wanted: Sequence[bool]
    ) -> list[Any]:
        if self.form == "sum":
            mirrored = dataclasses.replace(
                self, form="each", lhs=self.out, rhs=self.lhs, out=self.rhs,
                gather=self.scatter, scatter=None,
            )
            found = apply(mirrored, cts[0], *(x for x, want in zip(lhs, wanted, strict=True) if want))
        else:
            chosen = [ct for ct, want in zip(cts, wanted, strict=True) if want]
            if self.scatter is not None:
                chosen = [self._whole(ct, self.out, self.scatter) for ct in chosen]
            mirrored = dataclasses.replace(self, rhs=self.out, out=self.rhs, scatter=None)
            found = apply(mirrored, lhs[0], *chosen)
        rest = iter(found)
        return [next(rest) if want else None for want in wanted]

    def _whole(self, x: Any, labels: str, end: End) -> Any:
        return apply(Collective("all_gather", labels.index(end.label), end.axes, self.schedule), x)[0]

    def batched(
        self, dims: Sequence[int | None], operands: Sequence[Any]
    ) -> tuple[Operation, list[Any]]:
        """A new label, in front; see `primitive.Op`."""
        lefts = 1 if self.form == "each" else len(operands) // 2
        label = fresh_label(self.lhs + self.rhs)
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        sides = (range(lefts), range(lefts, len(operands)))
        moved = list(operands)
        mapped = [any(dims[i] is not None for i in side) for side in sides]
        for side, is_mapped in zip(sides, mapped, strict=True):
            for i in side:
                if is_mapped:
                    d = dims[i]
                    moved[i] = (
                        jnp.broadcast_to(operands[i], (size, *operands[i].shape))
                        if d is None
                        else jnp.moveaxis(operands[i], d, 0)
                    )
        left, right = (label if is_mapped else "" for is_mapped in mapped)
        op = dataclasses.replace(
            self, lhs=left + self.lhs, rhs=right + self.rhs, out=label + self.out
        )
        return op, moved

    def _scope(self) -> str:
        words = ["einsum"]
        if self.gather:
            words.insert(0, "all_gather")
        if self.scatter:
            words.append("reduce_scatter")
        if self.reduce:
            words.append("all_reduce")
        return f"{'_'.join(words)}[{self.schedule}]"


def fresh_label(used: str) -> str:
    """A label that is not in use."""
    return next(c for c in map(oe_parser.get_symbol, itertools.count()) if c not in used)


def _common(lhs: Any, rhs: Any, accumulator: Any) -> Any:
    """One dtype to multiply in: that of the floating operand where the other holds integers."""
    floating = [d for d in (lhs, rhs) if not jnp.issubdtype(d, jnp.integer)]
    if len(floating) == 1:
        return floating[0]
    return jnp.promote_types(lhs, rhs) if floating else accumulator


def _products(op: Operation, lhs: Sequence[Any], rhs: Sequence[Any]) -> list[Any]:
    """The local results: one for each rhs, or the sum over the pairs."""
    if op.form == "each":
        return [op.product(lhs[0], each) for each in rhs]
    terms = [op.product(a, b) for a, b in zip(lhs, rhs, strict=True)]
    return [functools.reduce(lambda total, term: term + total, terms)]


def _blocking(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    if op.gather is not None:
        dim, dtype = op.lhs.index(op.gather.label), lhs[0].dtype
        lhs = [lax.all_gather(op.moving(lhs[0]), op.gather.axes, axis=dim, tiled=True).astype(dtype)]
    results = _products(op, lhs, rhs)
    if op.scatter is not None:
        dim = op.out.index(op.scatter.label)
        results = [
            lax.psum_scatter(op.wire(y), op.scatter.axes, scatter_dimension=dim, tiled=True)
            for y in results
        ]
    if op.reduce:
        results = [lax.psum(op.wire(y), op.reduce) for y in results]
    return results


def _scattered(op: Operation, y: Any) -> Steps:
    """The collectives of a whole local result, as steps."""
    rolls, direction = op.schedule.rolls, op.schedule.direction
    if op.scatter is not None:
        y = yield from stages.reduce_scatter(
            y, op.scatter.axes, op.out.index(op.scatter.label), direction,
            wire=op.wire, accumulator=op.accumulator, rolls=rolls,
        )
    if op.reduce:
        y = yield from all_reduce_steps(
            y, op.reduce, direction, wire=op.wire, accumulator=op.accumulator, rolls=rolls
        )
    return y


def _gathered(op: Operation, x: Any) -> Steps:
    if op.gather is None:
        return x
    dim = op.lhs.index(op.gather.label)
    moved = yield from stages.all_gather(
        op.moving(x), op.gather.axes, dim, op.schedule.direction, rolls=op.schedule.rolls
    )
    return moved.astype(x.dtype)


def _pieces(x: Any, labels: str, label: str, lo: int, size: int) -> Any:
    return blocks.cut(x, labels.index(label), lo, size) if label in labels else x


def _chunked(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """Software pipeline: while a chunk is multiplied, others are being gathered and scattered."""
    label, count = op.schedule.label, op.schedule.chunks
    sizes = dict(zip(op.lhs + op.rhs, (*lhs[0].shape, *rhs[0].shape), strict=True))
    cuts = blocks.pieces_of(sizes[label], count) if label is not None else [(0, 0)]

    def piece(operands: list[Any], labels: str, lo: int, size: int) -> list[Any]:
        if label is None:
            return operands
        return [_pieces(x, labels, label, lo, size) for x in operands]

    waiting: list[Steps] = [_gathered(op, piece(lhs, op.lhs, *cut)[0]) for cut in cuts]
    ready: dict[int, Any] = {}
    running: dict[tuple[str, int, int], tuple[Steps, Any]] = {}
    done: dict[tuple[int, int], Any] = {}

    def start(key: tuple[str, int, int], steps: Steps) -> None:
        step(key, steps, None)

    def step(key: tuple[str, int, int], steps: Steps, state: Any) -> None:
        try:
            running[key] = (steps, steps.send(state))
        except StopIteration as stop:
            running.pop(key, None)
            if key[0] == "gather":
                ready[key[1]] = stop.value
            else:
                done[key[1:]] = stop.value

    def advance(value: Any) -> Any:
        """One hop of everything in progress, beside the computation of `value`."""
        keys = sorted(running)
        states, value = ring.together([running[key][1] for key in keys], value)
        for key, state in zip(keys, states, strict=True):
            step(key, running[key][0], state)
        return value

    if op.form == "sum":
        waiting = []
    ahead = 0
    for i, cut in enumerate(cuts):
        if op.form == "each":
            while i not in ready:
                if ahead <= i:
                    start(("gather", ahead, 0), waiting[ahead])
                    ahead += 1
                if i not in ready and running:
                    advance(None)
            if ahead < len(cuts):
                start(("gather", ahead, 0), waiting[ahead])
                ahead += 1
            left = [ready.pop(i)]
        else:
            left = piece(lhs, op.lhs, *cut)
        right = piece(rhs, op.rhs, *cut)
        pairs = [(left, [each]) for each in right] if op.form == "each" else [(left, right)]
        for j, (a, b) in enumerate(pairs):
            y = advance(_products(op, a, b)[0])
            start(("scatter", i, j), _scattered(op, y))
    while running:
        advance(None)
    results = len(rhs) if op.form == "each" else 1
    if label is None:
        return [done[0, j] for j in range(results)]
    return [_assemble(op, [done[i, j] for i in range(len(cuts))], label) for j in range(results)]


def _assemble(op: Operation, chunks: list[Any], label: str) -> Any:
    if label in op.out:
        return jnp.concatenate(chunks, axis=op.out.index(label))
    return sum(chunks[1:], start=chunks[0])


def _ringed(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """A dot for every hop of the last ring of the gather, or of the first of the scatter."""
    if op.gather is not None and op.scatter is None:
        results = ring.finish(_ring_gather(op, lhs[0], rhs, None))[0]
        return [ring.finish(_scattered(op, y)) for y in results]
    if op.scatter is not None:
        return _ring_scatter(op, lhs, rhs)
    return [ring.finish(_scattered(op, y)) for y in _products(op, lhs, rhs)]


def _strand_label(op: Operation, labels: str, shape: Sequence[int], end: End) -> str | None:
    """The label to cut strands along; None for one strand.

    Where an operand that stays must be sliced along the sharded label, there is one strand, whose
    last ring is that of the major axis: its slices are contiguous, others would be copied first.
    """
    stays = op.rhs if op.gather is end else op.lhs + op.rhs
    if end.label in stays:
        return None
    along = stages.strand_dim(tuple(shape), labels.index(end.label), len(end.axes))
    return None if along is None else labels[along]


def _ring_gather(op: Operation, x: Any, rhs: list[Any], only: Any) -> Steps:
    """The results of all rhs, and the gathered x if `only` asks for it (see `_ring_scatter`)."""
    end = op.gather
    if end is None:
        raise TypeError("a ring gather needs a gather")
    dim, axes = op.lhs.index(end.label), end.axes
    dtype, shard = x.dtype, x.shape[op.lhs.index(end.label)]
    label = _strand_label(op, op.lhs, x.shape, end)
    count = 1 if label is None else len(axes)
    cuts = [(0, 0)] if label is None else blocks.pieces_of(x.shape[op.lhs.index(label)], count)
    rolls, direction = op.schedule.rolls, op.schedule.direction

    def piece(y: Any, labels: str, s: int) -> Any:
        return y if label is None else _pieces(y, labels, label, *cuts[s])

    parts = [piece(op.moving(x), op.lhs, s) for s in range(count)]
    for stage in range(len(axes) - 1):
        parts = yield from stages._gather_stage(
            x.shape, parts, axes, dim, direction, rolls, stage, None, cuts
        )
    last = len(axes) - 1
    around = [
        stages.Around(axes, tuple(range(len(axes))), stages.order(s, len(axes))[last])
        for s in range(count)
    ]
    strands = [ring.Strand(a.axis, ring.lanes(a.n, direction, shard)) for a in around]
    out_dim = op.out.index(end.label) if end.label in op.out else None

    def consume(carry: Any, s: int, lane: Lane | None, offset: Any, got: Any) -> Any:
        results, kept = carry if carry is not None else ({}, None)
        results = dict(results)
        for i, each in enumerate(rhs):
            mine = piece(each, op.rhs, s)
            if end.label in op.rhs:
                mine = around[s].take(mine, op.rhs.index(end.label), offset, lane)
            y = op.product(got.astype(dtype), mine)
            key = f"{i} {s}"
            if out_dim is None:
                # The dot stands first: the compiler fuses an addition into the dot of its first term.
                results[key] = y + results[key] if key in results else y
            else:
                if key not in results:
                    full = list(y.shape)
                    full[out_dim] = shard * around[s].blocks
                    results[key] = lax.empty(tuple(full), op.dtype)
                results[key] = around[s].put(
                    results[key], y.astype(op.dtype), out_dim, offset, lane, None
                )
        if only is not None:
            if kept is None:
                full = list(x.shape)
                full[dim] = shard * around[s].blocks
                kept = lax.empty(tuple(full), got.dtype)
            also = None if label is None else (op.lhs.index(label), cuts[s][0])
            kept = around[s].put(kept, got, dim, offset, lane, also)
        return results, kept

    def cut(got: Any, lo: int, size: int) -> Any:
        return blocks.cut_shards(got, dim, shard, lo, size)

    rolled = all(rolls(a.n) for a in around)
    results, kept = yield from ring.gather(strands, parts, cut, consume, rolled=rolled)
    joined = []
    for i in range(len(rhs)):
        each = [results[f"{i} {s}"] for s in range(count)]
        joined.append(_assemble(op, each, label) if label is not None else each[0])
    return joined, None if kept is None else kept.astype(dtype)


def _ring_scatter(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """A dot for every block that is about to be sent; with a gather, the first dots await it."""
    if op.gather is not None:
        lhs = [ring.finish(_gathered(op, lhs[0]))]
    pairs = [(lhs, [each]) for each in rhs] if op.form == "each" else [(lhs, rhs)]
    return [_ring_scatter_one(op, a, b) for a, b in pairs]


def _ring_scatter_one(op: Operation, lhs: list[Any], rhs: list[Any]) -> Any:
    end = op.scatter
    if end is None:
        raise TypeError("a ring scatter needs a scatter")
    axes, dim = end.axes, op.out.index(end.label)
    sizes = dict(zip(op.lhs + op.rhs, (*lhs[0].shape, *rhs[0].shape), strict=True))
    shape = tuple(sizes[c] for c in op.out)
    label = _strand_label(op, op.out, shape, end)
    count = 1 if label is None else len(axes)
    cuts = [(0, 0)] if label is None else blocks.pieces_of(sizes[label], count)
    rolls, direction = op.schedule.rolls, op.schedule.direction
    shard = sizes[end.label] // ring.total(axes)
    last = len(axes) - 1
    every = tuple(range(len(axes)))
    around = [stages.Around(axes, every, stages.order(s, len(axes))[last]) for s in range(count)]

    def partial(s: int, lane: Lane | None, offset: Any) -> Any:
        def piece(y: Any, labels: str) -> Any:
            y = y if label is None else _pieces(y, labels, label, *cuts[s])
            if end.label in labels:
                y = around[s].take(y, labels.index(end.label), offset, lane)
            return y

        return _products(op, [piece(y, op.lhs) for y in lhs], [piece(y, op.rhs) for y in rhs])[0]

    def steps() -> Steps:
        parts = yield from stages.scatter_stage(
            around, partial, dim, [shard] * count, direction,
            wire=op.wire, rolls=rolls, busy=True,
        )
        for stage in reversed(range(last)):
            inner = [
                stages.Around(
                    axes, stages.present_after(len(axes), s, stage), stages.order(s, len(axes))[stage]
                )
                for s in range(count)
            ]

            def rest(
                s: int, lane: Lane | None, offset: Any, parts: Any = parts, inner: Any = inner
            ) -> Any:
                return inner[s].take(parts[s], dim, offset, lane)

            parts = yield from stages.scatter_stage(
                inner, rest, dim, [shard] * count, direction,
                wire=op.wire, rolls=rolls, busy=False,
            )
        return parts[0] if label is None else jnp.concatenate(parts, axis=op.out.index(label))

    return ring.finish(steps())
