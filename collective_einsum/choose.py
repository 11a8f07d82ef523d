"""`choose_schedule`: what "auto" would do, from shapes alone and with its reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AbstractMesh, PartitionSpec
from jax.typing import DTypeLike

from . import schedule_and_run
from .chips.chip import Chip
from .chips.known_chips import TPU_V4
from .cost.choice import Choice
from .ops.request import Options, RequestedCollectives
from .spec import sizes as checks
from .spec.quantized import OperandLike, OperandsLike

AxisName = str | tuple[str, ...]


def choose_schedule(
    spec: str,
    lhs: OperandLike | jax.ShapeDtypeStruct,
    rhs: OperandsLike | jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    *,
    axis_name: AxisName | None = None,
    gather: str | None = None,
    scatter: str | None = None,
    gather_axis_name: AxisName | None = None,
    scatter_axis_name: AxisName | None = None,
    axis_size: int | Sequence[int] | Mapping[str, int],
    preferred_element_type: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    overlap_seconds: float = 0.0,
    chip: Chip | str = TPU_V4,
) -> Choice:
    """The schedules of an einsum with its collectives, ranked by predicted cost; `print` shows why.

    `schedule="auto"` takes the first of them. Give `gather`, `scatter` or both; with neither it is
    `einsum_all_reduce`.

    Args:
      spec: an einsum of two operands.
      lhs: anything with the shape and dtype of a local shard (`jax.ShapeDtypeStruct` will do).
      rhs: likewise, or a sequence of such that are one operation: they share the gather of lhs, or
        have one shape.
      axis_name: mesh axes of the one collective.
      gather: the label that is gathered.
      scatter: the label that is scattered.
      gather_axis_name: axes of the gather, with both collectives.
      scatter_axis_name: axes of the scatter, with both collectives.
      axis_size: the size of the axis; a sequence for a tuple of axes; or the sizes of the axes of the
        mesh by name, in its order. The devices of a TPU7x chip lie along the last one that is longer
        than 1. Fewer axes than the torus has dimensions may lie along several of its sides each, as
        16 x 4 on 4 x 4 x 4 chips: lax's collectives use the links of all.
      preferred_element_type: dtype of the result.
      wire_dtype: dtype on the links.
      overlap_seconds: as `all_gather_einsum`.
      chip: whose costs to reckon with, itself or its name.

    Returns:
      A `Choice`: `.schedule`, `.rows`, `.reason`; prints as a table.

    Raises:
      ValueError: as the einsum itself would, in words.
    """
    gather_axes = gather_axis_name if gather_axis_name is not None else axis_name
    scatter_axes = scatter_axis_name if scatter_axis_name is not None else axis_name
    requested = RequestedCollectives(
        gather=None if gather is None else (gather, _named("gather", gather_axes)),
        scatter=None if scatter is None else (scatter, _named("scatter", scatter_axes)),
        reduce=_named("all-reduce", axis_name) if gather is None and scatter is None else None,
    )
    used = [
        collective[1]
        for collective in (requested.gather, requested.scatter)
        if collective is not None
    ]
    used += [requested.reduce] if requested.reduce is not None else []
    names = tuple(dict.fromkeys(name for axes in used for name in checks.axis_names(axes)))
    sizes = _sizes(names, axis_size)
    options = Options(
        preferred_element_type=preferred_element_type,
        wire_dtype=wire_dtype,
        overlap_seconds=overlap_seconds,
        chip=chip,
    )
    of_mesh = axis_size if isinstance(axis_size, Mapping) else {}
    choices: list[Choice] = []

    def rank(lhs: OperandLike, rhs: OperandsLike) -> None:
        choices.append(schedule_and_run.rank(spec, lhs, rhs, requested, options, of_mesh))

    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    everywhere = PartitionSpec()
    mapped = jax.shard_map(
        rank, mesh=mesh, in_specs=(everywhere, everywhere), out_specs=everywhere, check_vma=False
    )
    # No mesh but its own, also where it is called within somebody's shard_map.
    with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
        jax.eval_shape(mapped, lhs, list(rhs) if isinstance(rhs, Sequence) else rhs)
    return choices[0]


def _named(collective: str, axis_name: AxisName | None) -> AxisName:
    if axis_name is None:
        raise ValueError(f"choose_schedule: give the axes of the {collective}, as axis_name")
    return axis_name


def _sizes(
    names: tuple[str, ...], axis_size: int | Sequence[int] | Mapping[str, int]
) -> dict[str, int]:
    if isinstance(axis_size, Mapping):
        missing = [name for name in names if name not in axis_size]
        if missing:
            raise ValueError(f"axis_size={dict(axis_size)!r} lacks the axis {missing[0]!r}")
        return dict(axis_size)
    sizes = (axis_size,) if isinstance(axis_size, int) else tuple(axis_size)
    if len(sizes) != len(names):
        raise ValueError(
            f"axis_size={axis_size!r} gives {len(sizes)} size(s) for the axes {names!r}; give one "
            "for each, in this order, or a mapping by name"
        )
    return dict(zip(names, sizes, strict=True))
