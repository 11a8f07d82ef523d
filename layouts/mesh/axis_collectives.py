"""Collectives, and einsums with collectives, over axes of a layout, inside shard_map.

Every function takes axes of a layout (x, y, z) and calls `collective_einsum` with the mesh axes that
they stand for. Axes of size 1 are left out; without any axis left, an array is returned as it is.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import TypeVar, overload

import jax
import jax.numpy as jnp
from jax import lax

import collective_einsum as ce
from collective_einsum.execution import local_product
from collective_einsum.ops import as_schedule

from .. import tuning
from ..models.functions import wide
from ..models.stacked_params import Weight as Weight
from .axes import AXES as AXES
from .axes import WEIGHT_AXES as WEIGHT_AXES
from .axes import Axes as Axes
from .axes import as_mesh as as_mesh
from .axes import axis_index as axis_index
from .axes import axis_size as axis_size
from .axes import check_devices as check_devices
from .axes import check_mesh as check_mesh
from .axes import in_order as in_order
from .axes import live as live
from .axes import local_sizes as local_sizes
from .axes import names as names
from .axes import size as size

ScheduleLike = str | ce.Schedule
# Activations, or what `int8_rows` makes of them.
Activations = jax.Array | ce.Quantized
# The product of activations with one weight, or those with several.
Products = jax.Array | list[jax.Array]
SomeWeight = TypeVar("SomeWeight", jax.Array, ce.Quantized, Weight)


def collective_schedule(schedule: ScheduleLike) -> ScheduleLike:
    """The schedule of a collective that is no part of an einsum, from the schedule of the einsums."""
    einsums = as_schedule(schedule)
    if einsums is None:
        return "auto"
    if einsums.direction == "async":
        return ce.Schedule("chunked", "async", wire_dtype=einsums.wire_dtype)
    if einsums.kind == "blocking":
        return ce.Schedule("blocking", wire_dtype=einsums.wire_dtype)
    return ce.Schedule(
        "ring", einsums.direction, rolled=einsums.rolled, wire_dtype=einsums.wire_dtype
    )


def _left_to_lax(schedule: ScheduleLike) -> ScheduleLike:
    """The same, where "auto" is lax's own collective."""
    return "blocking" if schedule == "auto" else collective_schedule(schedule)


def all_gather(x: SomeWeight, axes: Sequence[str], dim: int, schedule: ScheduleLike) -> SomeWeight:
    """All-gathers dimension `dim` over `axes`."""
    axes = live(axes)
    if not axes:
        return x
    schedule = collective_schedule(schedule)
    if not isinstance(x, ce.Quantized):
        return ce.all_gather(x, names(axes), axis=dim, schedule=schedule)
    scale = x.scale
    if scale.shape[dim] == x.shape[dim]:
        scale = ce.all_gather(scale, names(axes), axis=dim, schedule=schedule)
    values = ce.all_gather(x.values, names(axes), axis=dim, schedule=schedule)
    return dataclasses.replace(x, values=values, scale=scale)


def reduce_scatter(
    x: jax.Array, axes: Sequence[str], dim: int, schedule: ScheduleLike
) -> jax.Array:
    """Sums x over `axes` and scatters dimension `dim` of the sum over them."""
    axes = live(axes)
    if not axes:
        return x
    schedule = collective_schedule(schedule)
    return ce.reduce_scatter(x, names(axes), scatter_dimension=dim, schedule=schedule)


def reduce_scatter_alone(
    x: jax.Array, axes: Sequence[str], dim: int, schedule: ScheduleLike
) -> jax.Array:
    """`reduce_scatter` that no computation can overlap: a ring would only add steps, so that "auto"
    is lax's own.

    The scattered dimension is split into [size(axes), -1] first: where slices are no full tiles,
    the TPU compiler would make an all-reduce and a slice of it.
    """
    axes = live(axes)
    if not axes:
        return x
    # H11 in docs/compiler.md.
    blocks = x.reshape(*x.shape[:dim], size(axes), -1, *x.shape[dim + 1 :])
    schedule = "blocking" if schedule == "auto" else schedule
    own = reduce_scatter(blocks, axes, dim, schedule)
    return own.reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :])


def all_reduce(x: jax.Array, axes: Sequence[str], schedule: ScheduleLike) -> jax.Array:
    """Sums x over `axes`. "auto" is lax's own: on v4, it takes 40 us less for 512 rows over 4 chips
    than the hops of a ring and the memory passes between them."""
    axes = live(axes)
    return ce.all_reduce(x, names(axes), schedule=_left_to_lax(schedule)) if axes else x


def all_reduce_few(
    x: jax.Array, axes: Sequence[str], schedule: ScheduleLike, *, in_hops: bool = False
) -> jax.Array:
    """Sums of few numbers over `axes`: one all-reduce where the schedule is "auto".

    Otherwise, and `in_hops`, half the hops of an all-reduce over each axis, one axis after the other:
    a reduce-scatter of n copies, of which every chip receives one full sum. Those of "auto" are
    permutes, which overlap what does not depend on them. The sums may differ from chip to chip by
    roundings.
    """
    if as_schedule(schedule) is None and not in_hops:
        return all_reduce(x, axes, schedule)
    for axis in live(axes):
        copies = jnp.broadcast_to(x, (axis_size(axis), *x.shape))
        x = reduce_scatter(copies, (axis,), 0, schedule)[0]
    return x


def all_to_all(
    x: jax.Array, axes: Sequence[str], split: int, concat: int, schedule: ScheduleLike
) -> jax.Array:
    """All-to-all over `axes`: splits dimension `split` and concatenates what arrives along `concat`.

    "auto" is lax's own: on v4, for the queries of 64 sequences there and back over 4x4 chips, it takes
    16 us where the memory passes around one made of permutes take 23 us, overlapped or not.
    """
    axes = live(axes)
    if not axes:
        return x
    return ce.all_to_all(x, names(axes), split, concat, schedule=_left_to_lax(schedule))


def own_block(x: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
    """This device's slice of dimension `dim`, sharded over `axes`, the first major; no transfer."""
    axes = live(axes)
    if not axes:
        return x
    block = x.shape[dim] // size(axes)
    return lax.dynamic_slice_in_dim(x, axis_index(axes) * block, block, axis=dim)


def rows(x: jax.Array) -> jax.Array:
    """x [..., n] as a matrix [rows, n]: the TPU compiler lays out only matrices well for a dot."""
    return x.reshape(-1, x.shape[-1])


def values(w: Weight) -> jax.Array:
    """The int8 values of a Quantized, or the array itself."""
    return w.values if isinstance(w, ce.Quantized) else w


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class OwnScaled(ce.Quantized):
    """Rows as int8 with a scale of this device alone, by which products are multiplied before they are
    summed over devices."""


def int8_rows(
    x: jax.Array, gathered: Sequence[str], summed: Sequence[str], schedule: ScheduleLike
) -> ce.Quantized:
    """Each row of x [rows, n over `gathered` and `summed`] as int8 with one scale.

    Args:
      x: the local shard.
      gathered: axes over which shards of a row are gathered before they are multiplied, and so have one
        scale.
      summed: axes over which the products of shards are summed. Where there are many rows, shards have
        one scale over these too, which a ring can multiply its sums by; where there are few, finding
        it takes longer than a ring saves, and under "auto" each device has its own.
      schedule: of the einsums that take them.
    """
    few = x.shape[0] <= tuning.OWN_SCALE_ROWS and as_schedule(schedule) is None
    axes = live(gathered) if few else live((*gathered, *summed))
    q = ce.quantize(x, -1, axis_name=names(axes) if axes else None)
    return OwnScaled(q.values, q.scale, q.dtype) if few and live(summed) else q


def local_einsum(spec: str, lhs: Activations, w: Weight) -> jax.Array:
    """An einsum without collectives, accumulated and returned in `wide(lhs.dtype)`.

    A Quantized w has one scale for each index of its last dimension, which is that of the result; a
    Quantized lhs one for each index of its first, which is the first of the result.
    """
    left, right, out = re.split(",|->", spec)
    y = local_product((left, right, out), values(lhs), values(w), accumulator=wide(lhs.dtype))
    y = y * w.scale[0] if isinstance(w, ce.Quantized) else y
    return y * lhs.scale if isinstance(lhs, ce.Quantized) else y


@overload
def all_gather_einsum(
    spec: str,
    lhs: Activations,
    w: Weight,
    axes: str | Sequence[str],
    gather: str,
    schedule: ScheduleLike,
    overlap_seconds: float = ...,
) -> jax.Array: ...
@overload
def all_gather_einsum(
    spec: str,
    lhs: Activations,
    w: Sequence[Weight],
    axes: str | Sequence[str],
    gather: str,
    schedule: ScheduleLike,
    overlap_seconds: float = ...,
) -> list[jax.Array]: ...
def all_gather_einsum(
    spec: str,
    lhs: Activations,
    w: Weight | Sequence[Weight],
    axes: str | Sequence[str],
    gather: str,
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> Products:
    """`collective_einsum.all_gather_einsum` over axes of a layout; `gather` is a label of `spec`.

    Returns an array, or a list of them if w is a list.
    """
    if not names(axes):
        return _alone(spec, lhs, w)
    return ce.all_gather_einsum(
        spec,
        lhs,
        w,
        axis_name=names(axes),
        gather=gather,
        schedule=schedule,
        overlap_seconds=overlap_seconds,
    )


@overload
def einsum_reduce_scatter(
    spec: str,
    lhs: Activations,
    w: Weight,
    axes: str | Sequence[str],
    scatter: str,
    schedule: ScheduleLike,
    overlap_seconds: float = ...,
) -> jax.Array: ...
@overload
def einsum_reduce_scatter(
    spec: str,
    lhs: Activations,
    w: Sequence[Weight],
    axes: str | Sequence[str],
    scatter: str,
    schedule: ScheduleLike,
    overlap_seconds: float = ...,
) -> list[jax.Array]: ...
def einsum_reduce_scatter(
    spec: str,
    lhs: Activations,
    w: Weight | Sequence[Weight],
    axes: str | Sequence[str],
    scatter: str,
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> Products:
    """`collective_einsum.einsum_reduce_scatter`, likewise."""
    if not names(axes):
        return _alone(spec, lhs, w)
    if isinstance(lhs, OwnScaled):
        return _scattered(_alone(spec, lhs, w), spec, axes, scatter, schedule)
    return ce.einsum_reduce_scatter(
        spec,
        lhs,
        w,
        axis_name=names(axes),
        scatter=scatter,
        schedule=schedule,
        overlap_seconds=overlap_seconds,
    )


@overload
def all_gather_einsum_reduce_scatter(
    spec: str,
    lhs: Activations,
    w: Weight,
    gather: tuple[str | Sequence[str], str],
    scatter: tuple[str | Sequence[str], str],
    schedule: ScheduleLike,
    overlap_seconds: float = ...,
) -> jax.Array: ...
@overload
def all_gather_einsum_reduce_scatter(
    spec: str,
    lhs: Activations,
    w: Sequence[Weight],
    gather: tuple[str | Sequence[str], str],
    scatter: tuple[str | Sequence[str], str],
    schedule: ScheduleLike,
    overlap_seconds: float = ...,
) -> list[jax.Array]: ...
def all_gather_einsum_reduce_scatter(
    spec: str,
    lhs: Activations,
    w: Weight | Sequence[Weight],
    gather: tuple[str | Sequence[str], str],
    scatter: tuple[str | Sequence[str], str],
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> Products:
    """`collective_einsum.all_gather_einsum_reduce_scatter`, likewise; each of `gather` and `scatter`
    is a pair of axes and a label."""
    if not names(gather[0]):
        return einsum_reduce_scatter(spec, lhs, w, *scatter, schedule, overlap_seconds)
    if not names(scatter[0]):
        return all_gather_einsum(spec, lhs, w, *gather, schedule)
    if isinstance(lhs, OwnScaled):
        return _scattered(
            all_gather_einsum(spec, lhs, w, *gather, schedule), spec, *scatter, schedule
        )
    return ce.all_gather_einsum_reduce_scatter(
        spec,
        lhs,
        w,
        gather_axis_name=names(gather[0]),
        gather=gather[1],
        scatter_axis_name=names(scatter[0]),
        scatter=scatter[1],
        schedule=schedule,
        overlap_seconds=overlap_seconds,
    )


def _scattered(
    y: Products, spec: str, axes: str | Sequence[str], label: str, schedule: ScheduleLike
) -> Products:
    """Products, each summed over `axes` and scattered along a label of the result of `spec`."""
    over, dim = (axes,) if isinstance(axes, str) else axes, spec.split("->")[1].index(label)
    if isinstance(y, list):
        return [reduce_scatter_alone(one, over, dim, schedule) for one in y]
    return reduce_scatter_alone(y, over, dim, schedule)


@overload
def _alone(spec: str, lhs: Activations, w: Weight) -> jax.Array: ...
@overload
def _alone(spec: str, lhs: Activations, w: Sequence[Weight]) -> list[jax.Array]: ...
def _alone(spec: str, lhs: Activations, w: Weight | Sequence[Weight]) -> Products:
    """The einsum without collectives, in the dtype of lhs; a list of results if w is a list."""
    if isinstance(w, Sequence):
        return [_alone(spec, lhs, one) for one in w]
    return local_einsum(spec, lhs, w).astype(lhs.dtype)
