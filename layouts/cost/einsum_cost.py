"""What an einsum of a layer costs with the collectives at its ends, under the schedule of "auto"."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from collective_einsum.chips.chip import Chip
from collective_einsum.cost.dots import Estimate
from collective_einsum.cost.lax_collectives import torus_seconds
from collective_einsum.cost.select import rank
from collective_einsum.ops.einsum_op import End, Operation
from collective_einsum.ops.schedule import Schedule

from ..mesh.axis_collectives import AXES
from .layer_items import Einsum, Transfer

# Share of hidden communication that a step loses all the same, to dots that run beside it and to what
# cuts and joins their operands, if these are activations: seen on v4 in steps with rings, against
# their einsums by themselves.
HIDING_COST = 0.2
_DTYPES = {each.itemsize: each for each in map(jnp.dtype, (jnp.int8, jnp.bfloat16, jnp.float32))}


class _Operand(NamedTuple):
    shape: tuple[int, ...]
    dtype: Any


class Seconds(NamedTuple):
    """Of dots and passes, and of communication that nothing hides."""

    compute: float
    exposed: float


def seconds(
    item: Einsum, sizes: Mapping[str, int], chip: Chip, overlap: str, overlap_seconds: float = 0.0
) -> Seconds:
    """What the schedule of `schedule="auto"` takes for overlap "auto", that of "blocking" for "none".

    `overlap_seconds` as in `collective_einsum.all_gather_einsum`.
    """
    return _seconds(
        item, tuple((axis, sizes[axis]) for axis in AXES), chip, overlap, overlap_seconds
    )


def schedule(
    item: Einsum, sizes: Mapping[str, int], chip: Chip, overlap_seconds: float = 0.0
) -> Schedule:
    """That of `schedule="auto"`."""
    operation, operands = _operation(item, sizes)
    return rank(operation, operands, chip, sizes, overlap_seconds).schedule


def gather_seconds(gather: Transfer, sizes: Mapping[str, int], chip: Chip) -> float:
    """An all-gather or a reduce-scatter by itself."""
    return torus_seconds(chip, [sizes[axis] for axis in gather.axes], gather.bytes)


@functools.lru_cache(maxsize=2**16)
def _seconds(
    item: Einsum,
    sizes: tuple[tuple[str, int], ...],
    chip: Chip,
    overlap: str,
    overlap_seconds: float,
) -> Seconds:
    by_axis = dict(sizes)
    choice = rank(*_operation(item, by_axis), chip, by_axis, overlap_seconds)
    # The least of all schedules, though "auto" leaves blocking only for a gain that is worth it: a
    # step through that threshold would let more work take less time.
    rows = [row for row in choice.rows if overlap == "auto" or row.schedule.kind == "blocking"]
    return min((_of_row(item, row, by_axis, chip) for row in rows), key=sum)


def _of_row(item: Einsum, row: Estimate, sizes: Mapping[str, int], chip: Chip) -> Seconds:
    hidden = row.communication - row.exposed
    exposed = row.exposed + (0.0 if item.gathers_weight else HIDING_COST * hidden)
    plain = row.schedule.kind != "ring" or row.schedule.end != "gather"
    if item.gather_shared and item.gather is not None and plain:
        exposed -= gather_seconds(item.gather[1], sizes, chip)
    return Seconds(row.compute, max(0.0, exposed))


def _operation(item: Einsum, sizes: Mapping[str, int]) -> tuple[Operation, list[_Operand]]:
    """As `collective_einsum` makes it of a projection: what is gathered is the lhs."""
    bfloat16, weight = _DTYPES[2], _DTYPES[item.weight_bytes]
    gather, scatter = (
        None if end is None else End(end[0], end[1].axes) for end in (item.gather, item.scatter)
    )
    lhs, rhs = "me", "ef"
    left = {"m": item.m, "e": item.e}
    rights = [{"e": item.e, "f": f} for f in item.f]
    if item.gathers_weight:
        lhs, rhs = rhs, lhs
        left, rights = rights[0], [left]
    if gather is not None:
        parts = 1
        for axis in gather.axes:
            parts *= sizes[axis]
        left = left | {gather.label: left[gather.label] // parts}
    weight_first = item.gathers_weight
    operands = [
        _Operand(tuple(left[c] for c in lhs), weight if weight_first else bfloat16),
        *(
            _Operand(tuple(right[c] for c in rhs), bfloat16 if weight_first else weight)
            for right in rights
        ),
    ]
    wide = jnp.dtype(jnp.float32)
    # The scales of int8 weights are applied before the result is rounded.
    result = wide if item.weight_bytes == 1 else bfloat16
    op = Operation(
        "each",
        lhs,
        rhs,
        "mf",
        gather,
        scatter,
        reduce=(),
        schedule=Schedule("blocking"),
        precision=None,
        accumulator=wide,
        dtype=result,
        sum_wire=bfloat16,
    )
    return op, operands
