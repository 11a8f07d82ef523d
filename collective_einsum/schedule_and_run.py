"""Every public einsum: normalize the arguments, choose the schedule, run, and scale the results."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .autodiff.primitive import apply, named
from .cost import ranking
from .cost import select as choice
from .cost.choice import Choice
from .cost.torus import on_slice
from .global_arrays.explicit_shardings import einsum_specs, explicit_axes, on_auto_axes
from .normalize import NormalEinsum, normalize
from .ops.einsum_op import EinsumCollective, Form, Operation
from .ops.feasibility import check_schedule
from .ops.request import Options, RequestedCollectives
from .ops.schedule import Schedule, as_schedule
from .result_scales import scale_of, scale_result, scales_chunks
from .spec import sizes as checks
from .spec.quantized import OperandLike, OperandsLike, Quantized


def run(
    text: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    requested: RequestedCollectives,
    options: Options,
) -> Any:
    """The result of an einsum with the collectives `requested`, or a list of results for a list of rhs.

    Args:
      text: the formula, such as "mk,kn->mn".
      lhs, rhs: local shards, as the public functions take them.
      requested: the collectives before and after the einsum.
      options: those of the public function.

    Raises:
      ValueError: the formula, sizes, axes or schedule do not fit together, in words.
    """
    if explicit_axes():
        out_specs = einsum_specs(text, lhs, rhs)
        return on_auto_axes(lambda a, b: run(text, a, b, requested, options), out_specs, lhs, rhs)
    results = [y for group in _groups(text, lhs, rhs, requested, options) for y in _apply(group)]
    results = named(requested.name, results)
    return results if isinstance(rhs, Sequence) else results[0]


def run_sum(
    text: str,
    lhs: Sequence[OperandLike],
    rhs: Sequence[OperandLike],
    requested: RequestedCollectives,
    options: Options,
) -> jax.Array:
    """The sum of the einsums of lhs and rhs, pair by pair, with one collective after it and none before.

    Args:
      text: the formula of each.
      lhs, rhs: as many of one as of the other; a label has one size in all, but for those summed over.
      requested, options: as of `run`.

    Raises:
      ValueError: as `run`.
    """
    pairs = zip(lhs, rhs, strict=True)
    return _apply([normalize(text, a, b, requested, options) for a, b in pairs], "sum")[0]


def rank(
    text: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    requested: RequestedCollectives,
    options: Options,
    axis_sizes: Mapping[str, int],
) -> Choice:
    """The schedules that `run` chooses from, ranked by predicted cost, for results of one operation.

    Args:
      text, lhs, rhs, requested, options: as of `run`.
      axis_sizes: of all axes of the mesh; {} if only those of the collectives are known.

    Raises:
      ValueError: the results are several operations, each with a schedule of its own.
    """
    group, *more = _groups(text, lhs, rhs, requested, options)
    if more:
        rights = rhs if isinstance(rhs, Sequence) else [rhs]
        shapes = ", ".join(
            str(jnp.shape(x)) if not isinstance(x, Quantized) else str(x.shape) for x in rights
        )
        raise ValueError(
            f"einsum {text!r} with rhs of {shapes}: each is an einsum of its own, with a schedule of "
            "its own, since they share no gather of lhs and differ in width; ask for one at a time"
            if group[0].moves_lhs
            else f"einsum {text!r} gathers rhs, and each of {shapes} is an einsum of its own, with a "
            "schedule of its own; ask for one at a time"
        )
    op, values = _operation(group)
    axes, chip = choice.mesh_axes(op), choice.chip_of(options.chip)
    return ranking.rank(op, values, chip, axes, options.overlap_seconds, on_slice(chip, axis_sizes))


def _groups(
    text: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    requested: RequestedCollectives,
    options: Options,
) -> list[list[NormalEinsum]]:
    """The einsums with every rhs, grouped into operations."""
    rights = list(rhs) if isinstance(rhs, Sequence) else [rhs]
    if not rights:
        raise ValueError(f"einsum {text!r}: rhs is an empty sequence; give at least one operand")
    einsums = [normalize(text, lhs, right, requested, options) for right in rights]
    # Operands of different widths share a gather; without one, they are split alike or not at all.
    alike = {(e.spec, e.result, e.gather or tuple(map(e.sizes.get, e.spec.out))) for e in einsums}
    if all(einsum.moves_lhs for einsum in einsums) and len(alike) == 1:
        return [einsums]
    return [[einsum] for einsum in einsums]


def _operation(
    einsums: list[NormalEinsum], form: Form = "shared_lhs"
) -> tuple[Operation, list[Any]]:
    """One operation for einsums of one spec that share lhs, or are added up, still without a schedule,
    and its operands."""
    first = einsums[0]
    options, spec, requested = first.options, first.spec, first.requested
    quantized = any(einsum.quantized for einsum in einsums)
    gather, scatter = (
        None if pair is None else EinsumCollective(label=pair[0], axes=checks.axis_names(pair[1]))
        for pair in (requested.gather, requested.scatter)
    )
    reduce = () if requested.reduce is None else checks.axis_names(requested.reduce)
    op = Operation(
        form=form,
        lhs=spec.lhs,
        rhs=spec.rhs,
        out=spec.out,
        gather=gather,
        scatter=scatter,
        reduce=reduce,
        schedule=Schedule("blocking"),
        # Read here, since dots are made when jit lowers, outside of a default set for a while.
        precision=options.precision or getattr(jax.config, "jax_default_matmul_precision"),  # noqa: B009
        accumulator=first.accumulator,
        # Scales come after the sums, so nothing is rounded before them.
        dtype=first.accumulator if quantized else first.result,
        sum_wire=first.wire or first.result,
    )
    lefts = [first.lhs] if form == "shared_lhs" else [einsum.lhs for einsum in einsums]
    operands = (*lefts, *(einsum.rhs for einsum in einsums))
    return op, [x.values if isinstance(x, Quantized) else x for x in operands]


def _apply(einsums: list[NormalEinsum], form: Form = "shared_lhs") -> list[Any]:
    """All results of einsums of one spec that share lhs, or the only one of those that are added up."""
    first = einsums[0]
    op, values = _operation(einsums, form)
    options = first.options
    schedule = choice.resolve(op, values, options.schedule, options.chip, options.overlap_seconds)
    with checks.sizes_are_numbers(f"einsum {first.spec}", schedule):
        return _run_with(schedule, op, values, einsums)


def _run_with(
    schedule: Schedule, op: Operation, values: Sequence[Any], einsums: list[NormalEinsum]
) -> list[Any]:
    """`_apply` under a schedule in which every choice is made."""
    first = einsums[0]
    for einsum in einsums:
        check_schedule(
            schedule,
            einsum.spec,
            einsum.sizes,
            einsum.gather,
            einsum.scatter,
            reduced=einsum.requested.reduce is not None,
        )
    wire = dataclasses.replace(schedule, wire_dtype=first.wire)
    op = choice.scheduled(op, wire, first.options.chip)
    if as_schedule(first.options.schedule) is None:
        op = dataclasses.replace(op, chosen_for=choice.chip_of(first.options.chip))
    if not any(einsum.quantized for einsum in einsums):
        return apply(op, *values)
    if not isinstance(first.lhs, Quantized) and scales_chunks(op):
        op = dataclasses.replace(op, scaled=True, dtype=first.result)
        return apply(op, *values, *map(scale_of, einsums))
    results = apply(op, *values)
    return [scale_result(einsum, y) for einsum, y in zip(einsums, results, strict=True)]
