"""Single steps over some of the three axes of every layout, on local shards.

Axes of size 1 are left out of every collective, and no axes at all leave an array as it is.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import collective_einsum as ce
from collective_einsum.chips import traced_chip
from collective_einsum.execution import local_product
from collective_einsum.ops import as_schedule

from ..models.functions import wide
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


def collective_schedule(schedule: ScheduleLike) -> ScheduleLike:
    """The schedule of a collective that no einsum absorbs, from that of the einsums."""
    given = as_schedule(schedule)
    if given is None:
        return "auto"
    if given.direction == "async":
        return ce.Schedule("chunked", "async", wire_dtype=given.wire_dtype)
    if given.kind == "blocking":
        return ce.Schedule("blocking", wire_dtype=given.wire_dtype)
    return ce.Schedule("ring", given.direction, rolled=given.rolled, wire_dtype=given.wire_dtype)


def weights_schedule(schedule: ScheduleLike) -> ScheduleLike:
    """The schedule of einsums that gather weights.

    Those are there from the start: where the compiler runs lax's gathers beside other work, each
    gather runs beside the matmuls before, whole, and no ring or chunk is better.
    """
    overlap_seconds = as_schedule(schedule) is None and "all_gather" in traced_chip().asynchronous
    return "blocking" if overlap_seconds else schedule


def all_gather(x: Any, axes: Sequence[str], dim: int, schedule: ScheduleLike) -> Any:
    """Shards of `dim` joined over `axes`; of an array or a Quantized."""
    axes = live(axes)
    if not axes:
        return x
    how = collective_schedule(schedule)
    if not isinstance(x, ce.Quantized):
        return ce.all_gather(x, names(axes), axis=dim, schedule=how)
    scale = x.scale
    if scale.shape[dim] == x.shape[dim]:
        scale = ce.all_gather(scale, names(axes), axis=dim, schedule=how)
    values = ce.all_gather(x.values, names(axes), axis=dim, schedule=how)
    return dataclasses.replace(x, values=values, scale=scale)


def reduce_scatter(x: jax.Array, axes: Sequence[str], dim: int, schedule: ScheduleLike) -> Any:
    """Sums over `axes`, and a block of `dim` on each device."""
    axes = live(axes)
    how = collective_schedule(schedule)
    if not axes:
        return x
    return ce.reduce_scatter(x, names(axes), scatter_dimension=dim, schedule=how)


def reduce_scatter_alone(
    x: jax.Array, axes: Sequence[str], dim: int, schedule: ScheduleLike
) -> jax.Array:
    """`reduce_scatter` where nothing is left to run beside it: a ring would only add steps, so
    "auto" leaves it to lax. Blocks are a dimension of their own: where they cut tiles, the TPU
    compiler would make an all-reduce and a slice."""
    axes = live(axes)
    if not axes:
        return x
    blocks = x.reshape(*x.shape[:dim], size(axes), -1, *x.shape[dim + 1 :])
    schedule = "blocking" if schedule == "auto" else schedule
    own = reduce_scatter(blocks, axes, dim, schedule)
    return own.reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :])


def all_reduce(x: jax.Array, axes: Sequence[str], schedule: ScheduleLike) -> jax.Array:
    """Sums over `axes`. "auto" leaves them to lax: of a v4, sums of 512 rows over 4 chips take 40 us
    less than a ring's hops and the passes between them."""
    axes = live(axes)
    how = "blocking" if schedule == "auto" else collective_schedule(schedule)
    return ce.all_reduce(x, names(axes), schedule=how) if axes else x


def all_reduce_few(x: jax.Array, axes: Sequence[str], schedule: ScheduleLike) -> jax.Array:
    """Sums of few numbers over `axes`, in as many hops as there are to the furthest chip.

    An all-reduce takes twice as many, to send fewer bytes: here every chip is sent all of the sums,
    as its block of a reduce-scatter of copies. They may differ by roundings from chip to chip.
    """
    for axis in live(axes):
        copies = jnp.broadcast_to(x, (axis_size(axis), *x.shape))
        x = reduce_scatter(copies, (axis,), 0, schedule)[0]
    return x


def all_to_all(
    x: jax.Array, axes: Sequence[str], split: int, concat: int, schedule: ScheduleLike
) -> jax.Array:
    """Blocks of `split` change places with shards of `concat`.

    "auto" leaves it to lax: for v4, its own takes 16 us where the passes around one made of permutes
    take 23 us, hidden or not (queries of 64 rows, there and back over 4x4 chips).
    """
    axes = live(axes)
    how = "blocking" if schedule == "auto" else collective_schedule(schedule)
    return ce.all_to_all(x, names(axes), split, concat, schedule=how) if axes else x


def own_block(x: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
    """This device's block of `dim`, cut into one for each device along `axes`, the first major."""
    axes = live(axes)
    if not axes:
        return x
    block = x.shape[dim] // size(axes)
    return lax.dynamic_slice_in_dim(x, axis_index(axes) * block, block, axis=dim)


def rows(x: jax.Array) -> jax.Array:
    """[..., n] as a matrix: the TPU compiler lays a dot's operands out well only if they are."""
    return x.reshape(-1, x.shape[-1])


def values(w: Any) -> jax.Array:
    """Those of a Quantized, or the array itself."""
    return w.values if isinstance(w, ce.Quantized) else w


def local_einsum(spec: str, lhs: jax.Array, w: Any) -> jax.Array:
    """An einsum without collectives, in the wide dtype of lhs; w is an array or a Quantized.

    The scale of a Quantized is that of the last dimension of w and of the result.
    """
    left, right, out = re.split(",|->", spec)
    y = local_product((left, right, out), lhs, values(w), accumulator=wide(lhs.dtype))
    return y * w.scale[0] if isinstance(w, ce.Quantized) else y


def all_gather_einsum(
    spec: str,
    lhs: jax.Array,
    w: Any,
    axes: str | Sequence[str],
    gather: str,
    schedule: ScheduleLike,
) -> Any:
    """`collective_einsum.all_gather_einsum` over axes of a layout, of which there may be none."""
    if not names(axes):
        return _alone(spec, lhs, w)
    how: dict[str, Any] = {"gather": gather, "schedule": schedule}
    return ce.all_gather_einsum(spec, lhs, w, axis_name=names(axes), **how)


def einsum_reduce_scatter(
    spec: str,
    lhs: jax.Array,
    w: Any,
    axes: str | Sequence[str],
    scatter: str,
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> Any:
    """`collective_einsum.einsum_reduce_scatter`, likewise."""
    if not names(axes):
        return _alone(spec, lhs, w)
    how: dict[str, Any] = {
        "scatter": scatter,
        "schedule": schedule,
        "overlap_seconds": overlap_seconds,
    }
    return ce.einsum_reduce_scatter(spec, lhs, w, axis_name=names(axes), **how)


def all_gather_einsum_reduce_scatter(
    spec: str,
    lhs: jax.Array,
    w: Any,
    gather: tuple[str | Sequence[str], str],
    scatter: tuple[str | Sequence[str], str],
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> Any:
    """`collective_einsum.all_gather_einsum_reduce_scatter`, likewise; both ends are axes and a label."""
    if not names(gather[0]):
        return einsum_reduce_scatter(spec, lhs, w, *scatter, schedule, overlap_seconds)
    if not names(scatter[0]):
        return all_gather_einsum(spec, lhs, w, *gather, schedule)
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


def _alone(spec: str, lhs: jax.Array, w: Any) -> Any:
    """The einsum on a single device, of one or several matrices."""
    if isinstance(w, list):
        return [_alone(spec, lhs, each) for each in w]
    return local_einsum(spec, lhs, w).astype(lhs.dtype)
