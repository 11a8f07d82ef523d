"""lax's collectives made of ring steps, which can overlap with unrelated compute."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .autodiff.primitive import apply, named
from .chips.chip import Chip
from .cost import select as choice
from .global_arrays.explicit_shardings import explicit_axes, on_auto_axes, spec_of
from .ops.collective_op import Collective, CollectiveKind
from .ops.schedule import Schedule
from .spec import dtypes
from .spec import sizes as checks
from .spec.quantized import Quantized

AxisName = str | tuple[str, ...]


def all_gather(
    x: Any,
    axis_name: AxisName,
    *,
    axis: int = 0,
    tiled: bool = True,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> Any:
    """`lax.all_gather(x, axis_name, axis=axis, tiled=True)`: n times as long in that dimension.

    Checkpoint policies by name know the result of every function here by the function's name:
    "ce.all_gather".

    Args:
      x: any array, a local shard; or a pytree of them, all of which are gathered.
      axis_name: mesh axis or axes; a tuple orders shards as lax does, major first.
      axis: the dimension along which shards are joined.
      tiled, axis_index_groups: as lax's, but only True and None serve.
      schedule: "auto", "blocking", "unidirectional", "bidirectional", "latency" or a `Schedule`,
        whose `wire_dtype` is the dtype on the links.
      chip: a `Chip` or its name, whose cost model "auto" uses; by default inferred from the mesh.

    Raises:
      ValueError: while tracing, for an unknown axis, dimension or schedule, or a schedule that
        cannot serve: "chunked", and "bidirectional" where a shard of one element has no halves.
    """
    if not tiled:
        raise ValueError(
            f"all_gather: tiled={tiled!r} would stack shards along a new dimension; leave it out, or "
            f"give tiled=True, and give that dimension to x: jnp.expand_dims(x, {axis})"
        )
    _check_groups("all_gather", axis_index_groups)
    return _of_leaves("all_gather", x, axis_name, axis, schedule, chip)


def reduce_scatter(
    x: Any,
    axis_name: AxisName,
    *,
    scatter_dimension: int = 0,
    tiled: bool = True,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> Any:
    """`lax.psum_scatter(x, axis_name, scatter_dimension=scatter_dimension, tiled=True)`.

    Sums are taken in at least 32 bits and rounded to `x`'s dtype (or the schedule's `wire_dtype`)
    at every hop, in an order that is the same in every run; integers wrap around as in lax.

    Args:
      x: any array, as large on every device; or a pytree of them.
      scatter_dimension: the dimension of which each device keeps its shard.
      axis_name, tiled, axis_index_groups, schedule, chip: as `all_gather`.

    Raises:
      ValueError: while tracing, also for a dimension that the number of devices does not divide.
    """
    if not tiled:
        raise ValueError(
            f"reduce_scatter: tiled={tiled!r} would drop the dimension that is scattered; leave it "
            f"out, or give tiled=True, and drop it afterwards: jnp.squeeze(y, {scatter_dimension})"
        )
    _check_groups("psum_scatter", axis_index_groups)
    return _of_leaves("reduce_scatter", x, axis_name, scatter_dimension, schedule, chip)


def all_to_all(
    x: Any,
    axis_name: AxisName,
    split_axis: int,
    concat_axis: int,
    *,
    tiled: bool = True,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> Any:
    """`lax.all_to_all(x, axis_name, split_axis, concat_axis, tiled=True)`.

    The slices are sent point to point, all at once, so a schedule's direction makes no difference.
    Over many devices "auto" leaves it to lax, since the program grows with the square of their number.

    Args:
      x: any array, a local shard; or a pytree of them.
      split_axis: the dimension whose slices are sent to the devices in order.
      concat_axis: the dimension along which the received slices are joined.
      axis_name, tiled, axis_index_groups, schedule, chip: as `all_gather`.

    Raises:
      ValueError: while tracing, also for a dimension that the number of devices does not divide.
    """
    if not tiled:
        raise ValueError(
            f"all_to_all: tiled={tiled!r} would drop split_axis and make a new dimension at "
            "concat_axis; leave it out, or give tiled=True, and reshape before and after, or use "
            "lax.all_to_all"
        )
    _check_groups("all_to_all", axis_index_groups)
    return _of_leaves("all_to_all", x, axis_name, split_axis, schedule, chip, concat_axis)


def all_reduce(
    x: Any,
    axis_name: AxisName,
    *,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    schedule: str | Schedule = "auto",
    chip: Chip | str | None = None,
) -> Any:
    """`lax.psum(x, axis_name)`: a reduce-scatter and an all-gather, equal on all devices.

    Args:
      x: any array; of any size, padded on the way where the number of devices does not divide it. Or
        a pytree of them; a Python number becomes so many times itself, as in lax.
      axis_name, axis_index_groups, schedule, chip: as `reduce_scatter`.

    Raises:
      ValueError: while tracing, for an unknown axis or schedule.
    """
    _check_groups("psum", axis_index_groups)
    return _of_leaves("all_reduce", x, axis_name, 0, schedule, chip)


def _check_groups(name: str, groups: object) -> None:
    if groups is not None:
        raise ValueError(
            f"axis_index_groups={groups!r}: a collective here is over all devices of its mesh "
            "axes; make the mesh with an axis for the groups and one within them, and name that, or "
            f"use lax.{name}"
        )


def _of_leaves(
    kind: CollectiveKind,
    x: Any,
    axis_name: AxisName,
    dim: int,
    schedule: str | Schedule,
    chip: Chip | str | None,
    concat: int = 0,
) -> Any:
    """The collective of every array of a pytree."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, Quantized):
            raise ValueError(
                f"{kind} over axis {axis_name!r}: a Quantized has a scale, which does not move like "
                "its values; pass .values and .scale one by one, or .dequantize() it first"
            )
        if kind == "all_reduce" and type(leaf) in (int, float, complex):
            return leaf * checks.axis_size(axis_name)
        return _run(kind, leaf, axis_name, dim, schedule, chip, concat)

    return jax.tree.map(one, x, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def _run(
    kind: CollectiveKind,
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
    chosen = choice.resolve_collective(kind, axes, schedule, chip, x.shape)
    with checks.sizes_are_numbers(where, chosen):
        _check_halves(where, kind, x.shape, dim, n, chosen)
        dtypes.check_wire_dtype(where, chosen.wire_dtype, x.dtype)
        return named(
            f"ce.{kind}",
            apply(Collective(kind=kind, dim=dim, axes=axes, schedule=chosen, concat=concat), x)[0],
        )


def _check_halves(
    where: str, kind: str, shape: tuple[int, ...], dim: int, n: int, chosen: Schedule
) -> None:
    """Refuses to send halves of shards that have one element."""
    if kind in ("all_gather", "reduce_scatter") and n > 1 and chosen.direction == "bidirectional":
        shard = shape[dim] if kind == "all_gather" else shape[dim] // n
        if shard < 2:
            raise ValueError(
                f"{where}: schedule {str(chosen)!r} sends half a shard each way, and a shard has "
                f"{shard} of dimension {dim}; use 'latency' or 'unidirectional'"
            )


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
