"""The chunked schedule: a software pipeline of collectives beside the dots of other chunks."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..chips.tiles import MATRIX_TILE
from ..ops.einsum_op import End, Operation
from ..ops.feasibility import gathers_into_result
from ..ops.schedule import POINT_TO_POINT_DEVICES
from ..rings import multi_axis as stages
from ..rings import ring_steps as ring
from ..rings import slicing as blocks
from ..rings.all_reduce import all_reduce_steps
from ..rings.ring_steps import Steps
from . import pieces_schedule as piecewise
from .local_ops import as_sent, lax_gather, lax_scatter, multiply, products, sum_as_sent


def _scattered(op: Operation, y: Any) -> Steps:
    """The collectives of a whole local result, as steps."""
    rolls, direction = op.schedule.rolls, op.schedule.direction
    if op.scatter is not None:
        y = yield from stages.reduce_scatter(
            y,
            op.scatter.axes,
            op.out.index(op.scatter.label),
            direction,
            wire=functools.partial(sum_as_sent, op),
            accumulator=op.accumulator,
            rolls=rolls,
        )
    if op.reduce:
        y = yield from all_reduce_steps(
            y,
            op.reduce,
            direction,
            wire=functools.partial(sum_as_sent, op),
            accumulator=op.accumulator,
            rolls=rolls,
        )
    return y


def _gathered(op: Operation, x: Any) -> Steps:
    if op.gather is None:
        return x
    dim = op.lhs.index(op.gather.label)
    moved = yield from stages.all_gather(
        as_sent(op, x), op.gather.axes, dim, op.schedule.direction, rolls=op.schedule.rolls
    )
    return moved.astype(x.dtype)


def _pieces(x: Any, labels: str, label: str, lo: int, size: int) -> Any:
    return blocks.cut(x, labels.index(label), lo, size) if label in labels else x


def _columns(op: Operation, w: Any, label: str, lo: int, size: int) -> Any:
    """A chunk of the columns of a weight.

    The compiler is not told where it begins. Of a slice that it knows it makes a copy before the
    matmul, where several read one matrix of a scanned stack: 182 us for bf16 [4608, 4608] on v4.
    """
    dim = op.rhs.find(label)
    if dim < 0 or label not in op.out or w.dtype.itemsize == 1 or size == w.shape[dim]:
        return _pieces(w, op.rhs, label, lo, size)
    # H3 in docs/compiler.md.
    start = lax.optimization_barrier(jnp.int32(lo))
    return lax.dynamic_slice_in_dim(w, start, size, axis=dim)


def _whole(op: Operation, end: End, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """One chunk: each result is scattered during the next one's dot.

    Nothing hides the gather and the last scatter: they are lax's own, which need no assembling.
    """
    if op.gather is not None:
        lhs = [lax_gather(op, lhs[0], op.gather.axes, op.lhs.index(op.gather.label))]
    if op.form == "sum" or ring.total(end.axes) > POINT_TO_POINT_DEVICES:
        return [lax_scatter(op, y, end.axes) for y in products(op, lhs, rhs)]
    dim = op.out.index(end.label)
    results, moving, arriving = [], None, None
    for i, each in enumerate(rhs):
        y = multiply(op, lhs[0], each)
        if moving is not None:
            arriving, y = ring.together(arriving, y)
            results.append(ring.finish(moving, arriving))
        if i == len(rhs) - 1:
            results.append(lax_scatter(op, y, end.axes))
            break
        moving = stages.straight_reduce_scatter(
            y, end.axes, dim, wire=functools.partial(sum_as_sent, op), accumulator=op.accumulator
        )
        arriving = next(moving)
    return results


def run(op: Operation, lhs: list[Any], rhs: list[Any]) -> list[Any]:
    """Software pipeline: while a chunk is multiplied, others are being gathered and scattered."""
    label, shares = op.schedule.label, op.schedule.shares
    direct = op.schedule.direction == "async"
    if len(shares) == 1 and op.scatter is not None and not direct:
        return _whole(op, op.scatter, lhs, rhs)
    if op.gather is not None and direct and gathers_into_result(op, label):
        results = piecewise.run(op, op.gather, lhs[0], rhs)
        return [ring.finish(_scattered(op, y)) for y in results]
    # A mirrored operation may scatter, or sum over, what was gathered in pieces: that is not cut.
    label = None if label in op.taken else label
    sizes = dict(zip(op.lhs + op.rhs, (*lhs[0].shape, *rhs[0].shape), strict=True))
    cuts = blocks.pieces_of(sizes[label], shares, MATRIX_TILE) if label is not None else [(0, 0)]

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
        states = [running[key][1] for key in keys]
        # What is tied to a dot, and goes directly, the TPU scheduler waits for before the dot.
        states, value = (states, value) if direct else ring.together(states, value)
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
        if direct and label is not None:
            right = [_columns(op, w, label, *cut) for w in rhs]
        else:
            right = piece(rhs, op.rhs, *cut)
        pairs = [(left, [each]) for each in right] if op.form == "each" else [(left, right)]
        for j, (a, b) in enumerate(pairs):
            y = advance(products(op, a, b)[0])
            start(("scatter", i, j), _scattered(op, y))
    while running:
        advance(None)
    results = len(rhs) if op.form == "each" else 1
    if label is None:
        return [done[0, j] for j in range(results)]
    return [_assemble(op, [done[i, j] for i in range(len(cuts))], label) for j in range(results)]


def _assemble(op: Operation, chunks: list[Any], label: str) -> Any:
    if label in op.out:
        return blocks.put_together(chunks, op.out.index(label))
    return sum(chunks[1:], start=chunks[0])
