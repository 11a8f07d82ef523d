"""Seconds of an einsum of a layer with its collectives, under the schedule that "auto" chooses."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from collective_einsum.chips import Chip
from collective_einsum.cost import (
    Choice,
    Estimate,
    all_gather_seconds,
    on_slice,
    rank_einsum,
    slice_sides,
)
from collective_einsum.ops import Schedule

from .. import tuning
from ..mesh.axis_collectives import AXES
from .layer_items import Einsum, Transfer

_DTYPES = {d.itemsize: d for d in map(np.dtype, (jnp.int8, jnp.bfloat16, jnp.float32, np.float64))}


class _Operand(NamedTuple):
    """An operand's sizes by label, in the order of its dimensions, and its dtype."""

    sizes: dict[str, int]
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())


class Seconds(NamedTuple):
    """Seconds of dots and memory passes, and of communication that overlaps with none."""

    compute: float
    exposed: float


def seconds(
    item: Einsum, sizes: Mapping[str, int], chip: Chip, overlap: str, overlap_seconds: float = 0.0
) -> Seconds:
    """Seconds of an einsum, for overlap "auto" under the fastest schedule, for "none" under "blocking".

    Args:
      item: the einsum.
      sizes: sizes of the mesh axes.
      chip: every chip of the mesh.
      overlap: "auto" or "none".
      overlap_seconds: as in `collective_einsum.all_gather_einsum`.
    """
    return _seconds(
        item, tuple((axis, sizes[axis]) for axis in AXES), chip, overlap, overlap_seconds
    )


def schedule(
    item: Einsum, sizes: Mapping[str, int], chip: Chip, overlap_seconds: float = 0.0
) -> Schedule:
    """The schedule that "auto" chooses for an einsum."""
    return _choice(item, sizes, chip, overlap_seconds).schedule


def gain(item: Einsum, sizes: Mapping[str, int], chip: Chip, overlap_seconds: float = 0.0) -> float:
    """The predicted gain of that schedule over "blocking", as a fraction."""
    choice = _choice(item, sizes, chip, overlap_seconds)
    return choice.blocking.seconds / choice.rows[0].seconds - 1


def gather_seconds(gather: Transfer, sizes: Mapping[str, int], chip: Chip) -> float:
    """Seconds of an all-gather or a reduce-scatter that overlaps with nothing."""
    return all_gather_seconds(chip, slice_sides(chip, sizes, gather.axes), gather.bytes)


@functools.lru_cache(maxsize=2**16)
def _seconds(
    item: Einsum,
    sizes: tuple[tuple[str, int], ...],
    chip: Chip,
    overlap: str,
    overlap_seconds: float,
) -> Seconds:
    by_axis = dict(sizes)
    choice = _choice(item, by_axis, chip, overlap_seconds)
    # The minimum over all schedules, though "auto" leaves "blocking" only for a gain of `WORTHWHILE`:
    # with that threshold, more work could be predicted to take less time.
    rows = [row for row in choice.rows if overlap == "auto" or row.schedule.kind == "blocking"]
    fastest = min((_of_row(item, row, by_axis, chip) for row in rows), key=sum)
    return fastest._replace(compute=item.experts * fastest.compute)


def _of_row(item: Einsum, row: Estimate, sizes: Mapping[str, int], chip: Chip) -> Seconds:
    hidden = row.communication - row.exposed
    exposed = row.exposed + (0.0 if item.gathers_weight else tuning.OVERLAP_LOSS * hidden)
    plain = row.schedule.kind != "ring" or row.schedule.ring_of != "gather"
    if item.gather_shared and item.gather is not None and plain:
        exposed -= gather_seconds(item.gather[1], sizes, chip)
    return Seconds(row.compute, max(0.0, exposed))


def _choice(item: Einsum, sizes: Mapping[str, int], chip: Chip, overlap_seconds: float) -> Choice:
    """Ranks the einsum that `collective_einsum` makes of a projection.

    Its lhs is the gathered operand: activations [m, e], or the weight [e, f].
    """
    gather, scatter = (
        None if end is None else (end[0], end[1].axes) for end in (item.gather, item.scatter)
    )
    bfloat16, weight_dtype = _DTYPES[2], _DTYPES[item.weight_bytes]
    activation = _Operand({"m": item.m, "e": item.e}, _DTYPES[item.input_bytes])
    weights = [_Operand({"e": item.e, "f": f}, weight_dtype) for f in item.f]
    lhs, rhs, spec = activation, weights, "me,ef->mf"
    if item.gathers_weight:
        lhs, rhs, spec = weights[0], [activation], "ef,me->mf"
    if gather is not None:
        label, axes = gather
        shards = math.prod(sizes[axis] for axis in axes)
        lhs = lhs._replace(sizes=lhs.sizes | {label: lhs.sizes[label] // shards})
    return rank_einsum(
        spec,
        lhs,
        rhs,
        gather=gather,
        scatter=scatter,
        axis_sizes=sizes,
        chip=chip,
        # Scales of int8 weights multiply the result before it is rounded.
        result_dtype=jnp.float32 if item.weight_bytes == 1 else bfloat16,
        wire_dtype=bfloat16,
        overlap_seconds=overlap_seconds,
        folded=on_slice(chip, sizes),
    )
