"""The ring schedules: a dot for every hop, of the shard that arrived or for the sum that leaves."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jax import lax

from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import End, Operation
from ..rings import multi_axis as stages
from ..rings import ring_steps as ring
from ..rings import slicing as blocks
from ..rings.ring_steps import Lane
from .local_ops import as_sent, lax_gather, lax_scatter, multiply, products, sum_as_sent


def run(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """The results under a "ring" schedule.

    An einsum with both ends goes round the ring of one of them; the other has no dots left to hide
    it and is lax's own collective, which needs no assembling.
    """
    if op.gather is not None and (op.scatter is None or op.schedule.end == "gather"):
        results = _gather(op, op.gather, lhs[0], rhs)
        if op.scatter is None:
            return results
        return [lax_scatter(op, y, op.scatter.axes) for y in results]
    if op.scatter is None:
        return products(op, lhs, rhs)
    if op.gather is not None:
        lhs = [lax_gather(op, lhs[0], op.gather.axes, op.lhs.index(op.gather.label))]
    return _scatter(op, op.scatter, lhs, rhs)


def _gather(op: Operation, end: End, x: Any, rhs: list[Any]) -> list[Any]:
    """A dot for every piece of x that arrives.

    Over several axes, where rhs must be sliced along the gathered label, the minor axes are gathered
    first and the ring is that of the major one, so that the slices are long. Where it need not be,
    rings go through all devices, each with its strand of every shard.
    """
    dim, axes, dtype, shard = (
        op.lhs.index(end.label),
        end.axes,
        x.dtype,
        x.shape[op.lhs.index(end.label)],
    )
    sliced = end.label in op.rhs
    moving = as_sent(op, x)
    direction, rolls = op.schedule.direction, op.schedule.rolls
    if len(axes) > 1 and not sliced:
        around: list[stages.Around] = [*stages.touring(axes, op.closed)]
        around = around[:shard]
    else:
        around = [stages.major(axes)]
        if len(axes) > 1:
            moving = lax.all_gather(moving, axes[1:], axis=dim, tiled=True)
    cuts = blocks.pieces_of(shard, len(around), MATRIX_TILE)
    parts = [blocks.cut_shards(moving, dim, shard, *each) for each in cuts]
    strands = [
        ring.Strand(a.axis, ring.lanes(a.n, direction, size), a.stops)
        for a, (_, size) in zip(around, cuts, strict=True)
    ]
    out_dim = op.out.index(end.label) if end.label in op.out else None

    def consume(carry: Any, s: int, lane: Lane | None, offset: Any, piece: Any) -> Any:
        lo, size = (0, cuts[s][1]) if lane is None else (lane.lo, lane.size)
        place = (cuts[s][0] + lo, size)
        carry = list(carry) if carry is not None else [None] * len(rhs)
        for i, each in enumerate(rhs):
            if sliced:
                each = around[s].take(each, op.rhs.index(end.label), offset, *place)
            y = multiply(op, piece.astype(dtype), each)
            if out_dim is None:
                # The dot stands first: so the compiler makes the addition a part of it.
                carry[i] = y if carry[i] is None else y + carry[i]
                continue
            y = y.astype(op.dtype)
            if carry[i] is None:
                carry[i] = blocks.room(y, out_dim, shard * around[s].blocks)
            carry[i] = around[s].put(carry[i], y, out_dim, offset, *place)
        return carry

    def cut(piece: Any, s: int, lo: int, size: int) -> Any:
        return blocks.cut_shards(piece, dim, cuts[s][1], lo, size)

    rolled = all(rolls(a.n) for a in around)
    return ring.finish(ring.gather(strands, parts, cut, consume, rolled=rolled))


def _scatter(op: Operation, end: End, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """A dot for every block that is about to be sent; several results take turns.

    Over several axes the ring is that of the major one, since the blocks of a contiguous dimension
    are then contiguous; what is left is a block of it, scattered over the minor axes.
    """
    dim, axes = op.out.index(end.label), end.axes
    groups = [(lhs, [each]) for each in rhs] if op.form == "each" else [(lhs, rhs)]
    around = [stages.major(axes) for _ in groups]
    # Results may be of different widths.
    shards = [
        dict(zip(op.lhs + op.rhs, (*a[0].shape, *b[0].shape), strict=True))[end.label]
        // each.blocks
        for (a, b), each in zip(groups, around, strict=True)
    ]

    def partial(s: int, lane: Lane | None, offset: Any, sums: Sequence[Any]) -> Any:
        place = (0, shards[s]) if lane is None else (lane.lo, lane.size)

        def piece(x: Any, labels: str) -> Any:
            if end.label not in labels:
                return x
            return around[s].take(x, labels.index(end.label), offset, *place)

        left, right = groups[s]
        if sums:
            # A dot that waits for the sums as a whole takes their addition into its own loop.
            left, *sums = ring.together(left, *sums)
        left, right = [piece(x, op.lhs) for x in left], [piece(x, op.rhs) for x in right]
        (term,) = products(op, left, right)
        return sum((each.astype(term.dtype) for each in sums), term)

    results = ring.finish(
        stages.scatter_stage(
            around,
            partial,
            dim,
            shards,
            op.schedule.direction,
            wire=functools.partial(sum_as_sent, op),
            rolls=op.schedule.rolls,
            busy=True,
        )
    )
    return [lax_scatter(op, y, axes[1:]) if len(axes) > 1 else y for y in results]
