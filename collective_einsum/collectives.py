"""lax's collectives made of ring steps, which can run beside unrelated computation."""

from __future__ import annotations

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp

from . import checks, choice, dtypes
from .chip import Chip
from .collective import Collective
from .explicit import explicit_axes, on_auto_axes, spec_of
from .primitive import apply
from .schedule import Schedule

AxisName = str | tuple[str, ...]


def all_gather(
    x: Any,
    axis_name: AxisName,
    *,
    axis: int = 0,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> jax.Array:
    """`lax.all_gather(x, axis_name, axis=axis, tiled=True)`: n times as long in that dimension.

    Args:
      x: any array, a local shard.
      axis_name: mesh axis or axes; a tuple orders shards as lax does, major first.
      axis: the dimension along which shards are joined.
      schedule: "auto", "blocking", "unidirectional", "bidirectional", "latency" or a `Schedule`,
        whose `wire_dtype` is the dtype on the links.
      chip: whose costs "auto" reckons with, itself or its name; by default told from the mesh.

    Raises:
      ValueError: while tracing, for an unknown axis, dimension or schedule, or one that cannot
        serve: "chunked", and "bidirectional" where there is one element to go two ways.
    """
    return _run("all_gather", x, axis_name, axis, schedule, chip)


def reduce_scatter(
    x: Any,
    axis_name: AxisName,
    *,
    scatter_dimension: int = 0,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> jax.Array:
    """`lax.psum_scatter(x, axis_name, scatter_dimension=scatter_dimension, tiled=True)`.

    Sums are taken in at least 32 bits and rounded to `x`'s dtype (or the schedule's `wire_dtype`)
    at every hop, in an order that is the same in every run; integers wrap around as in lax.

    Args:
      x: any array, as large on every device.
      scatter_dimension: the dimension of which each device keeps its block.
      axis_name, schedule, chip: as `all_gather`.

    Raises:
      ValueError: while tracing, also for a dimension that the number of devices does not divide.
    """
    return _run("reduce_scatter", x, axis_name, scatter_dimension, schedule, chip)


def all_to_all(
    x: Any,
    axis_name: AxisName,
    split_axis: int,
    concat_axis: int,
    *,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> jax.Array:
    """`lax.all_to_all(x, axis_name, split_axis, concat_axis, tiled=True)`.

    Every block travels by itself, straight to its device, and all are in flight at once; a
    schedule's direction therefore makes no difference.

    Args:
      x: any array, a local shard.
      split_axis: the dimension whose blocks go to the devices in order.
      concat_axis: the dimension along which what arrives is joined.
      axis_name, schedule, chip: as `all_gather`.

    Raises:
      ValueError: while tracing, also for a dimension that the number of devices does not divide.
    """
    return _run("all_to_all", x, axis_name, split_axis, schedule, chip, concat_axis)


def all_reduce(
    x: Any,
    axis_name: AxisName,
    *,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> jax.Array:
    """`lax.psum(x, axis_name)`: a reduce-scatter and an all-gather, equal on all devices.

    Args:
      x: any array; of any size, padded on the way where the number of devices does not divide it.
      axis_name, schedule, chip: as `reduce_scatter`.

    Raises:
      ValueError: while tracing, for an unknown axis or schedule.
    """
    return _run("all_reduce", x, axis_name, 0, schedule, chip)


def _run(
    kind: Any,
    x: Any,
    axis_name: AxisName,
    dim: int,
    schedule: str | Schedule,
    chip: Chip | str | None,
    concat: int = 0,
) -> jax.Array:
    x = jnp.asarray(x)
    if explicit_axes():
        again = functools.partial(
            _run, kind, axis_name=axis_name, dim=dim, schedule=schedule, chip=chip, concat=concat
        )
        return on_auto_axes(again, spec_of(x), x)
    axes = checks.axis_names(axis_name)
    n = checks.axis_size(axes)
    where = f"{kind} of shape {x.shape} over axis {axis_name!r} of size {n}"
    if x.dtype == jnp.bool_ or not jnp.issubdtype(x.dtype, jnp.number):
        raise ValueError(f"{where}: dtype {x.dtype} is not numeric; cast it first")
    if kind != "all_reduce":
        dim, concat = _dimension(where, dim, x.ndim), _dimension(where, concat, x.ndim)
    if kind == "all_gather" and not x.shape[dim]:
        raise ValueError(f"{where}: dimension {dim} has size 0, so there is nothing to gather")
    if kind in ("reduce_scatter", "all_to_all") and x.shape[dim] % n:
        raise ValueError(
            f"{where}: {n} does not divide dimension {dim}, of size {x.shape[dim]}; pad it to "
            f"{-(-x.shape[dim] // n) * n}"
        )
    chosen = choice.resolve_collective(kind, axes, schedule, chip)
    if kind in ("all_gather", "reduce_scatter") and n > 1 and chosen.direction == "bidirectional":
        shard = x.shape[dim] if kind == "all_gather" else x.shape[dim] // n
        if shard < 2:
            raise ValueError(
                f"{where}: schedule {str(chosen)!r} sends half a shard each way, and a shard has "
                f"{shard} of dimension {dim}; use 'latency' or 'unidirectional'"
            )
    dtypes.check_wire_dtype(where, chosen.wire_dtype, x.dtype)
    return apply(Collective(kind, dim, axes, chosen, concat), x)[0]


def _dimension(where: str, dim: int, ndim: int) -> int:
    try:
        index = None if isinstance(dim, bool) else operator.index(dim)
    except TypeError:
        index = None
    if index is None:
        raise ValueError(f"{where}: dimension {dim!r} must be an integer")
    if not -ndim <= dim < ndim:
        raise ValueError(f"{where}: there is no dimension {dim} among {ndim}")
    return index % ndim
