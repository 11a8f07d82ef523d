"""From what a user passes to an `Operation` and back: checks, dtypes, normal form and scales."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import collectives
from .autodiff.primitive import apply, named
from .cost import ranking
from .cost import select as choice
from .cost.choice import Choice
from .global_arrays.explicit_shardings import einsum_specs, explicit_axes, on_auto_axes
from .ops.einsum_op import End, Operation
from .ops.feasibility import check_schedule
from .ops.request import Ends, Options
from .ops.schedule import Schedule
from .scaled_chunks import run_scaled, scales_apart
from .spec import dtypes
from .spec import sizes as checks
from .spec import spec as specs
from .spec.quantized import OperandLike, OperandsLike, Quantized, split_scale

Operand = jax.Array | Quantized


def run(text: str, lhs: OperandLike, rhs: OperandsLike, ends: Ends, options: Options) -> Any:
    """An einsum with the collectives `ends`: what every public function comes down to."""
    if explicit_axes():
        out_specs = einsum_specs(text, lhs, rhs)
        return on_auto_axes(lambda a, b: run(text, a, b, ends, options), out_specs, lhs, rhs)
    results = [y for group in _groups(text, lhs, rhs, ends, options) for y in _apply(group)]
    results = named(ends.name, results)
    return results if isinstance(rhs, Sequence) else results[0]


def rank(text: str, lhs: OperandLike, rhs: OperandsLike, ends: Ends, options: Options) -> Choice:
    """The schedules that `run` chooses from, of results that it makes together.

    Raises ValueError if it makes them one by one.
    """
    group, *more = _groups(text, lhs, rhs, ends, options)
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
    axes = {axis: lax.axis_size(axis) for axis in op.axes}
    return ranking.rank(op, values, choice.chip_of(options.chip), axes, options.overlap_seconds)


def _groups(
    text: str, lhs: OperandLike, rhs: OperandsLike, ends: Ends, options: Options
) -> list[list[_Problem]]:
    """The einsums with every rhs, those together that can be one operation."""
    rights = list(rhs) if isinstance(rhs, Sequence) else [rhs]
    if not rights:
        raise ValueError(f"einsum {text!r}: rhs is an empty sequence; give at least one operand")
    problems = [_problem(text, lhs, right, ends, options) for right in rights]
    # Operands of different widths share a gather; without one, they are split alike or not at all.
    alike = {(p.spec, p.result, p.gather or tuple(map(p.sizes.get, p.spec.out))) for p in problems}
    if all(p.moves_lhs for p in problems) and len(alike) == 1:
        return [problems]
    return [[p] for p in problems]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Problem:
    """One einsum with its collectives, checked, in normal form: what is gathered is the lhs, no
    size-1 dimension broadcasts, and no label is repeated within an operand.

    Attributes:
      ends: the collectives, as the caller gave them.
      options: as the caller gave them.
      spec: the labels in normal form.
      sizes: the size of each label on one device, after the gather and before the scatter.
      gather: the all-gather of the lhs.
      scatter: the reduce-scatter of the result.
      moves_lhs: whether the caller's lhs is gathered, or nothing; if not, lhs and rhs are exchanged.
      lhs, rhs: the operands in normal form.
      result: the dtype of the result.
      accumulator: the dtype of the dots' results.
      wire: the dtype in which data is sent; None for the dtype that it has anyway.
    """

    ends: Ends
    options: Options
    spec: specs.Spec
    sizes: dict[str, int]
    gather: specs.Gather | None
    scatter: specs.Scatter | None
    moves_lhs: bool
    lhs: Operand
    rhs: Operand
    result: np.dtype
    accumulator: np.dtype
    wire: np.dtype | None

    def scaled(self, y: Any) -> Any:
        """`y` times the scales of quantized operands, in the dtype of the result."""
        out = self.spec.out
        for moved, operand, labels in (
            (self.gather is not None, self.lhs, self.spec.lhs),
            (False, self.rhs, self.spec.rhs),
        ):
            if not isinstance(operand, Quantized):
                continue
            _, scale = split_scale(self.spec, labels, operand, out)
            if moved and self.ends.gather is not None:
                label, axis_name = self.ends.gather
                d = labels.index(label)
                # A shard of size 1 has a scale of its own, too.
                if label in out and operand.scale.shape[d] == operand.shape[d]:
                    kind = "blocking" if self._blocks() else "latency"
                    scale = collectives.all_gather(
                        scale, axis_name, axis=out.index(label), schedule=kind
                    )
            if self.scatter is not None and self.ends.scatter is not None:
                dim, shard = self.scatter.out_dim, self.scatter.shard
                if scale.shape[dim] != 1:
                    start = lax.axis_index(checks.axis_names(self.ends.scatter[1])) * shard
                    scale = lax.dynamic_slice_in_dim(scale, start, shard, axis=dim)
            y = y * scale.astype(y.dtype)
        return y.astype(self.result)

    def _blocks(self) -> bool:
        given = self.options.schedule
        return given == "blocking" or (isinstance(given, Schedule) and given.kind == "blocking")


def _problem(
    text: str, lhs: OperandLike, rhs: OperandsLike, ends: Ends, options: Options
) -> _Problem:
    """Checks an einsum with its collectives and brings it into normal form.

    Raises:
      ValueError: anything does not fit, in words.
    """
    operands = [x if isinstance(x, Quantized) else jnp.asarray(x) for x in (lhs, rhs)]
    left_shape, right_shape = (tuple(x.shape) for x in operands)
    shapes = (left_shape, right_shape)
    spec = specs.parse(text, *shapes)
    gather = _gather(spec, shapes, ends)
    sizes = checks.check_sizes(spec, *shapes, gather)
    scatter = _scatter(spec, sizes, ends)
    kinds = _result_dtypes(spec, operands, sizes, scatter, ends, options)
    wire = _wire_dtype(spec, operands, gather, scatter, kinds.result, options)
    for x, labels in zip(operands, (spec.lhs, spec.rhs), strict=True):
        if isinstance(x, Quantized):
            split_scale(spec, labels, x, spec.out)
            _check_one_scale(spec, x, labels, gather, ends)
    moves_lhs = gather is None or gather.operand == "lhs"
    spec, *drop = checks.squeeze_broadcasts(spec, *shapes, gather)
    plain = [
        _plain(_squeeze(x, dims), labels, "".join({*spec.out, *other}), kinds.accumulator)
        for x, dims, labels, other in zip(
            operands, drop, (spec.lhs, spec.rhs), (spec.rhs, spec.lhs), strict=True
        )
    ]
    if gather is not None and not moves_lhs:
        plain.reverse()
        gather = dataclasses.replace(gather, operand="lhs")
    (left, left_labels), (right, right_labels) = plain
    return _Problem(
        ends=ends,
        options=options,
        spec=dataclasses.replace(spec, lhs=left_labels, rhs=right_labels),
        sizes=sizes,
        gather=gather,
        scatter=scatter,
        moves_lhs=moves_lhs,
        lhs=left,
        rhs=right,
        result=kinds.result,
        accumulator=kinds.accumulator,
        wire=wire,
    )


def _gather(
    spec: specs.Spec, shapes: tuple[specs.Shape, specs.Shape], ends: Ends
) -> specs.Gather | None:
    """The all-gather before the einsum, checked."""
    if ends.gather is None:
        return None
    label, axis_name = ends.gather
    n = checks.axis_size(axis_name)
    if ends.scatter is not None:
        specs.check_both_ends(
            spec,
            label,
            ends.scatter[0],
            gather_axes=checks.axis_names(axis_name),
            scatter_axes=checks.axis_names(ends.scatter[1]),
        )
    gather = specs.resolve_gather(spec, label, *shapes, n=n, axis_name=axis_name)
    if not gather.shard:
        raise ValueError(
            f"gather={label!r} over axis {axis_name!r} of size {n} in einsum {spec}: "
            f"{gather.operand} has size 0 there, so there is nothing to gather; use jnp.einsum"
        )
    if spec.role(label) in ("lhs_summed", "rhs_summed"):
        raise ValueError(
            f"gather={label!r} over axis {axis_name!r} of size {n}: einsum {spec} sums over "
            f"{label!r} in {gather.operand} alone, so its shards are not needed: sum "
            f"{gather.operand} over {label!r}, all_reduce that, and leave {label!r} out"
        )
    return gather


def _scatter(spec: specs.Spec, sizes: dict[str, int], ends: Ends) -> specs.Scatter | None:
    """The reduce-scatter after the einsum, checked."""
    if ends.scatter is None:
        return None
    label, axis_name = ends.scatter
    shapes = [[sizes[c] for c in labels] for labels in (spec.lhs, spec.rhs)]
    n = checks.axis_size(axis_name)
    return specs.resolve_scatter(spec, label, *shapes, n=n, axis_name=axis_name)


def _result_dtypes(
    spec: specs.Spec,
    operands: Sequence[Operand],
    sizes: dict[str, int],
    scatter: specs.Scatter | None,
    ends: Ends,
    options: Options,
) -> dtypes.Dtypes:
    """The dtypes of the result and of the sums, checked."""
    devices = scatter.n if scatter is not None else 1
    if ends.reduce is not None:
        devices = checks.axis_size(ends.reduce)
    return dtypes.check_dtypes(
        spec,
        *operands,
        terms=dtypes.summed_terms(spec, sizes, devices),
        preferred_element_type=options.preferred_element_type,
        accumulator=options.accumulator_dtype,
    )


def _wire_dtype(
    spec: specs.Spec,
    operands: Sequence[Operand],
    gather: specs.Gather | None,
    scatter: specs.Scatter | None,
    result: np.dtype,
    options: Options,
) -> np.dtype | None:
    """The dtype in which data is sent, checked; None for the dtype that it has anyway."""
    wire = options.wire_dtype
    if wire is None and isinstance(options.schedule, Schedule):
        wire = options.schedule.wire_dtype
    if wire is None:
        return None
    if gather is None or scatter is not None:
        wire = dtypes.check_wire_dtype(spec, wire, result)
    if gather is not None:
        x = operands[gather.operand == "rhs"]
        moving = x.values.dtype if isinstance(x, Quantized) else x.dtype
        # With both collectives the wire dtype is that of the sums, and integers move as they are.
        if scatter is None or not jnp.issubdtype(moving, jnp.integer):
            wire = dtypes.check_wire_dtype(spec, wire, moving)
    return np.dtype(wire)


def _check_one_scale(
    spec: specs.Spec, x: Quantized, labels: str, gather: specs.Gather | None, ends: Ends
) -> None:
    """Raises ValueError if products of different scales would be summed over devices, as far as types
    tell."""
    summed: set[str] = set()
    for end in (ends.scatter and ends.scatter[1], ends.reduce):
        summed.update(checks.axis_names(end) if end is not None else ())
    if gather is not None and ends.gather is not None:
        moved = spec.lhs if gather.operand == "lhs" else spec.rhs
        if gather.out_dim is None and labels == moved:
            summed.update(checks.axis_names(ends.gather[1]))
    differs = summed & jax.typeof(x.scale).manual_axis_type.varying
    if differs:
        raise ValueError(
            f"einsum {spec}: the scale of {labels!r} varies over the axis {min(differs)!r}, "
            "over whose devices its products are summed, so it cannot be applied to their "
            "sum; quantize the whole array, and shard it by partition_specs"
        )


def _squeeze(x: Any, dims: Sequence[int]) -> Any:
    if not dims:
        return x
    if isinstance(x, Quantized):
        return dataclasses.replace(
            x, values=lax.squeeze(x.values, dims), scale=lax.squeeze(x.scale, dims)
        )
    return lax.squeeze(x, dims)


def _plain(x: Any, labels: str, used: str, accumulator: Any) -> tuple[Any, str]:
    """`x` with each label once: its diagonals taken and, if it is not of integers, the labels that
    nothing else uses summed over. An einsum cannot bring either back, as derivatives would need.
    """
    once = "".join(dict.fromkeys(labels))
    if isinstance(x, Quantized):
        if once == labels:
            return x, labels
        # The scale is shared along a repeated label: size 1.
        values, scale = (jnp.einsum(f"{labels}->{once}", part) for part in (x.values, x.scale))
        return dataclasses.replace(x, values=values, scale=scale), once
    left = once
    if jnp.issubdtype(x.dtype, jnp.inexact):
        left = "".join(c for c in once if c in used)
    if left == labels:
        return x, labels
    dtype = accumulator if left != once else x.dtype
    return jnp.einsum(f"{labels}->{left}", x, preferred_element_type=dtype).astype(x.dtype), left


def _operation(problems: list[_Problem]) -> tuple[Operation, list[Any]]:
    """Problems that share lhs and spec as one operation, but for its schedule, and its operands."""
    first = problems[0]
    options, spec, ends = first.options, first.spec, first.ends
    quantized = any(isinstance(x, Quantized) for p in problems for x in (p.lhs, p.rhs))
    gather, scatter = (
        None if end is None else End(label=end[0], axes=checks.axis_names(end[1]))
        for end in (ends.gather, ends.scatter)
    )
    reduce = () if ends.reduce is None else checks.axis_names(ends.reduce)
    op = Operation(
        form="each",
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
    operands = (first.lhs, *(p.rhs for p in problems))
    return op, [x.values if isinstance(x, Quantized) else x for x in operands]


def _apply(problems: list[_Problem]) -> list[Any]:
    """All results of problems that share lhs and spec."""
    first = problems[0]
    op, values = _operation(problems)
    options = first.options
    schedule = choice.resolve(op, values, options.schedule, options.chip, options.overlap_seconds)
    with checks.sizes_are_numbers(f"einsum {first.spec}", schedule):
        return _under(schedule, op, values, problems)


def _under(
    schedule: Schedule, op: Operation, values: Sequence[Any], problems: list[_Problem]
) -> list[Any]:
    """`_apply` under a schedule that is complete."""
    first = problems[0]
    for p in problems:
        check_schedule(
            schedule, p.spec, p.sizes, p.gather, p.scatter, reduced=p.ends.reduce is not None
        )
    op = dataclasses.replace(
        op,
        schedule=dataclasses.replace(schedule, wire_dtype=first.wire),
        closed=choice.closed_axes(op, schedule, first.options.chip),
    )
    scaled = [p.scaled for p in problems]
    stays = isinstance(first.rhs, Quantized) and not isinstance(first.lhs, Quantized)
    if stays and scales_apart(op):
        return run_scaled(op, values[0], values[1:], scaled)
    return [scale(y) for scale, y in zip(scaled, apply(op, *values), strict=True)]
