"""Checks the arguments of an einsum with collectives, and brings them into a normal form."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .ops.request import Options, RequestedCollectives
from .ops.schedule import Schedule
from .spec import dtypes
from .spec import sizes as checks
from .spec import spec as specs
from .spec.quantized import OperandLike, Quantized, split_scale

Operand = jax.Array | Quantized


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class NormalEinsum:
    """One einsum with its collectives, checked, in normal form.

    Only the lhs is gathered, no size-1 dimension broadcasts, and no label is repeated in an operand.

    Attributes:
      requested: the collectives, as the caller named them.
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

    requested: RequestedCollectives
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

    @property
    def quantized(self) -> bool:
        """Whether an operand has scales, by which the results are to be multiplied."""
        return isinstance(self.lhs, Quantized) or isinstance(self.rhs, Quantized)


def normalize(
    text: str,
    lhs: OperandLike,
    rhs: OperandLike,
    requested: RequestedCollectives,
    options: Options,
) -> NormalEinsum:
    """Checks an einsum with its collectives and brings it into normal form.

    Raises:
      ValueError: anything does not fit, in words.
    """
    operands = [x if isinstance(x, Quantized) else jnp.asarray(x) for x in (lhs, rhs)]
    left_shape, right_shape = (tuple(x.shape) for x in operands)
    shapes = (left_shape, right_shape)
    spec = specs.parse(text, *shapes)
    gather = _gather(spec, shapes, requested)
    sizes = checks.check_sizes(spec, *shapes, gather)
    scatter = _scatter(spec, sizes, requested)
    kinds = _result_dtypes(spec, operands, sizes, scatter, requested, options)
    wire = _wire_dtype(spec, operands, gather, scatter, kinds.result, options)
    for x, labels in zip(operands, (spec.lhs, spec.rhs), strict=True):
        if isinstance(x, Quantized):
            split_scale(spec, labels, x, spec.out)
            _check_one_scale(spec, x, labels, gather, requested)
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
    return NormalEinsum(
        requested=requested,
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
    spec: specs.Spec, shapes: tuple[specs.Shape, specs.Shape], requested: RequestedCollectives
) -> specs.Gather | None:
    """The all-gather before the einsum, checked."""
    if requested.gather is None:
        return None
    label, axis_name = requested.gather
    n = checks.axis_size(axis_name)
    if requested.scatter is not None:
        specs.check_both_ends(
            spec,
            label,
            requested.scatter[0],
            gather_axes=checks.axis_names(axis_name),
            scatter_axes=checks.axis_names(requested.scatter[1]),
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


def _scatter(
    spec: specs.Spec, sizes: dict[str, int], requested: RequestedCollectives
) -> specs.Scatter | None:
    """The reduce-scatter after the einsum, checked."""
    if requested.scatter is None:
        return None
    label, axis_name = requested.scatter
    shapes = [[sizes[c] for c in labels] for labels in (spec.lhs, spec.rhs)]
    n = checks.axis_size(axis_name)
    return specs.resolve_scatter(spec, label, *shapes, n=n, axis_name=axis_name)


def _result_dtypes(
    spec: specs.Spec,
    operands: Sequence[Operand],
    sizes: dict[str, int],
    scatter: specs.Scatter | None,
    requested: RequestedCollectives,
    options: Options,
) -> dtypes.Dtypes:
    """The dtypes of the result and of the sums, checked."""
    devices = scatter.n if scatter is not None else 1
    if requested.reduce is not None:
        devices = checks.axis_size(requested.reduce)
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
    spec: specs.Spec,
    x: Quantized,
    labels: str,
    gather: specs.Gather | None,
    requested: RequestedCollectives,
) -> None:
    """Raises ValueError if the types show that products of different scales would be summed over
    devices."""
    summed: set[str] = set()
    for axes in (requested.scatter and requested.scatter[1], requested.reduce):
        summed.update(checks.axis_names(axes) if axes is not None else ())
    if gather is not None and requested.gather is not None:
        moved = spec.lhs if gather.operand == "lhs" else spec.rhs
        if gather.out_dim is None and labels == moved:
            summed.update(checks.axis_names(requested.gather[1]))
    differs = summed & jax.typeof(x.scale).manual_axis_type.varying
    if differs:
        raise ValueError(
            f"einsum {spec}: the scale of {labels!r} varies over the axis {min(differs)!r}, "
            "over whose devices its products are summed, so it cannot be applied to their "
            "sum; quantize the whole array, and shard it by partition_specs"
        )


def _squeeze(x: Operand, dims: Sequence[int]) -> Operand:
    if not dims:
        return x
    if isinstance(x, Quantized):
        return dataclasses.replace(
            x, values=lax.squeeze(x.values, dims), scale=lax.squeeze(x.scale, dims)
        )
    return lax.squeeze(x, dims)


def _plain(x: Operand, labels: str, used: str, accumulator: np.dtype) -> tuple[Operand, str]:
    """An operand in which each label stands once, and its labels.

    A repeated label leaves the diagonal. Labels that neither the other operand nor the result has are
    summed over, except in integers: the derivative of an einsum could not restore them.
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
