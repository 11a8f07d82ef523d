"""The schedule that an einsum or a collective runs under: the one asked for, or the cheapest."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import jax
from jax import lax

from ..chips.chip import Chip
from ..chips.compile_context import traced_chip, with_options
from ..chips.names import as_chip
from ..ops.einsum_op import Operation
from ..ops.schedule import PERMUTED_DEVICES, Schedule, as_schedule
from ..spec import sizes as checks
from .candidates import chunk_labels, chunk_length
from .estimate import estimate
from .ranking import rank
from .torus import on_slice
from .workload import ShapedArray, workload


def resolve(
    op: Operation,
    operands: Sequence[ShapedArray],
    schedule: str | Schedule,
    chip: Chip | str | None,
    overlap_seconds: float = 0.0,
) -> Schedule:
    """The schedule that was asked for, with every choice made; for "auto", the first of `rank`."""
    given, named = as_schedule(schedule), None if chip is None else as_chip(chip)
    axes = mesh_axes(op)
    symbolic = checks.symbolic(*(size for x in operands for size in x.shape))
    if given is None:
        # Sizes that are no numbers have no costs.
        if symbolic:
            return Schedule("blocking")
        figures = chip_of(named)
        return rank(op, operands, figures, axes, overlap_seconds, folded(figures)).schedule
    if given.kind == "chunked" and len(given.proportions) > 1 and given.label is None:
        if symbolic:
            raise ValueError(
                f"schedule {str(given)!r} splits a label into chunks, and of shapes "
                f"{[tuple(x.shape) for x in operands]} not all sizes are numbers; choose 'auto' or "
                "'blocking'"
            )
        work = workload(op, operands, chip_of(named), axes)
        lengths = {c: chunk_length(work, c) for c in chunk_labels(op, given.direction)}
        if lengths and isinstance(schedule, str):
            # By name, it is as many chunks as the longest label can be split into.
            most = max(1, *lengths.values())
            given = dataclasses.replace(given, chunks=min(most, len(given.proportions)))
        if len(given.proportions) == 1:
            return given
        labels = [label for label, size in lengths.items() if size >= sum(given.proportions)]
        split = [dataclasses.replace(given, label=c) for c in labels]
        return min(split, key=lambda schedule: estimate(work, schedule).seconds, default=given)
    return given


def scheduled(op: Operation, schedule: Schedule, chip: Chip | str | None) -> Operation:
    """The operation under a schedule in which every choice is made, and with what that depends on of the
    chip that is named, or else of the mesh's."""
    return dataclasses.replace(
        op,
        schedule=schedule,
        closed=closed_axes(op, schedule, chip),
        in_rows=chip_of(chip).widens_in_rows,
    )


def derived(op: Operation, operands: Sequence[ShapedArray]) -> Operation:
    """An operation that was derived from another one, under a schedule of its own where the cost model
    chose that of the other; else under the same.

    What was gathered is scattered in it, and its dots have other shapes, so that the schedule that was
    cheapest for the other may be a slow one here.
    """
    if op.chosen_for is None:
        return op
    schedule = resolve(op, operands, "auto", op.chosen_for)
    wire = dataclasses.replace(schedule, wire_dtype=op.schedule.wire_dtype)
    return scheduled(op, wire, op.chosen_for)


def mesh_axes(op: Operation) -> dict[str, int]:
    """The sizes of all axes of the mesh in scope, in its order, and of the operation's: the devices of a
    chip lie along an axis that it need not name."""
    own = {axis: lax.axis_size(axis) for axis in op.axes}
    return dict(jax.sharding.get_abstract_mesh().shape) | own


def folded(chip: Chip) -> dict[str, tuple[int, ...]]:
    """The axes of the mesh in scope that lie along several sides of its slice, as `on_slice`; {} of a
    mesh that names no devices."""
    mesh = jax.sharding.get_abstract_mesh()
    named = mesh.abstract_device is not None
    return on_slice(chip, dict(mesh.shape)) if named else {}


def closed_axes(op: Operation, schedule: Schedule, chip: Chip | str | None) -> tuple[str, ...]:
    """The axes of the collectives that close into rings, which Hamiltonian rings through all devices of
    several axes depend on; () where the schedule has none such."""
    if schedule.kind != "ring" or all(len(collective.axes) == 1 for collective in op.collectives):
        return ()
    wraps = chip_of(chip).wraps
    return tuple(
        a for collective in op.collectives for a in collective.axes if wraps(lax.axis_size(a))
    )


def resolve_collective(
    kind: Literal["all_gather", "reduce_scatter", "all_to_all", "all_reduce"],
    axes: Sequence[str],
    schedule: str | Schedule,
    chip: Chip | str | None,
    shape: Sequence[int],
) -> Schedule:
    """The schedule of a collective without an einsum; for "auto", one that can overlap other compute.

    Args:
      kind: as in `Chip.asynchronous`.
      axes: the mesh axes.
      schedule: as the caller gave it.
      chip: as the caller gave it.
      shape: the operand's local shape.

    Raises:
      ValueError: the schedule splits an einsum into chunks.
    """
    given, named = as_schedule(schedule), None if chip is None else as_chip(chip)
    if given is not None:
        if given.kind == "chunked" and (given.direction != "async" or len(given.proportions) > 1):
            raise ValueError(
                f"schedule={schedule!r} splits an einsum into chunks, and a collective has none; "
                "choose 'auto', 'blocking', 'unidirectional', 'bidirectional', 'latency' or 'async'"
            )
        return given
    chip = chip_of(named)
    n = math.prod(lax.axis_size(axis) for axis in axes)
    if n == 1 or (kind == "all_to_all" and n > PERMUTED_DEVICES) or checks.symbolic(*shape):
        return Schedule("blocking")
    if kind in chip.asynchronous or not chip.torus_dims:
        return Schedule("blocking")
    return Schedule("ring", "latency")


def chip_of(chip: Chip | str | None) -> Chip:
    """The chip that is named, or else that of the mesh in scope, with the collectives that its compiler
    makes asynchronous under the options of this trace.

    Raises:
      ValueError: no chip has that name.
    """
    return traced_chip() if chip is None else with_options(as_chip(chip))
