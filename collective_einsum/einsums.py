"""The einsums with a collective at one end or both, on local shards inside `shard_map`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from . import checks, choice, collectives, dtypes
from . import spec as specs
from .chip import Chip
from .operation import End, Operation
from .primitive import apply
from .quantized import Quantized, split_scale
from .schedule import Schedule

AxisName = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Options:
    """What the public functions take beside operands and collectives; see `all_gather_einsum`."""

    schedule: str | Schedule = "auto"
    precision: Any = None
    preferred_element_type: Any = None
    accumulator_dtype: Any = None
    wire_dtype: Any = None
    chip: Chip | None = None


@dataclasses.dataclass(frozen=True)
class Ends:
    """The collectives around an einsum: (label, axis_name) of a gather and a scatter, or the axes
    of an all-reduce."""

    gather: tuple[str, AxisName] | None = None
    scatter: tuple[str, AxisName] | None = None
    reduce: AxisName | None = None


def all_gather_einsum(
    spec: str,
    lhs: Any,
    rhs: Any,
    *,
    axis_name: AxisName,
    gather: str,
    schedule: str | Schedule = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
    accumulator_dtype: Any = None,
    wire_dtype: Any = None,
    chip: Chip | None = None,
) -> Any:
    """`jnp.einsum(spec, lhs, rhs)` of operands one of which is all-gathered on the way.

    Equal to `lax.all_gather(..., tiled=True)` of the operand that holds one shard of label `gather`,
    then the einsum: "Efficiently Scaling Transformer Inference", section 3.5. Works inside
    `shard_map`, under jit, vmap, scan, grad, jvp and remat. The backward pass is the mirrored
    function (`einsum_reduce_scatter`) under the same schedule; its residuals are the local shards.

    Order of summation: within a dot, the compiler's; over shards of a contracted label, the own shard
    first and then in order of arrival, so it differs from device to device but never from run to run:
    the same inputs give the same bits. Against plain einsum the result is within a few roundings of
    `accumulator_dtype` times the number of shards, and exact for integers.

    Args:
      spec: an einsum of two operands; `...` and an implicit output are allowed.
      lhs: an array, or a `Quantized`; local shards.
      rhs: likewise, or a sequence of those that share lhs and its one gather.
      axis_name: mesh axis or axes to gather over. A tuple orders shards as lax does, major first.
      gather: the label whose shards are gathered. If both operands have it, the one that holds a
        shard is told by its size.
      schedule: "auto" (`choose_schedule`), "blocking", "unidirectional", "bidirectional", "latency",
        "chunked", or a `Schedule`.
      precision: of the dots, as in `jnp.einsum`.
      preferred_element_type: dtype of the result; by default that of `jnp.einsum`.
      accumulator_dtype: dtype of dots and sums; float32 unless the result is wider, or integer.
      wire_dtype: dtype on the links; by default that of the gathered operand.
      chip: whose costs "auto" reckons with; by default told from the mesh.

    Returns:
      The result's local shard; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip
    )
    return run(spec, lhs, rhs, Ends(gather=(gather, axis_name)), options)


def einsum_reduce_scatter(
    spec: str,
    lhs: Any,
    rhs: Any,
    *,
    axis_name: AxisName,
    scatter: str,
    schedule: str | Schedule = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
    accumulator_dtype: Any = None,
    wire_dtype: Any = None,
    chip: Chip | None = None,
) -> Any:
    """`jnp.einsum(spec, lhs, rhs)` summed over the devices of `axis_name`, a block of it on each.

    Equal to the einsum, then `lax.psum_scatter(..., tiled=True)` along label `scatter` of the output.
    A block's sum starts on the device furthest away and is added to on its way home, in
    `accumulator_dtype`, rounded to `wire_dtype` at every hop: the same inputs give the same bits.
    Against plain einsum it is within n roundings of the wire's dtype over n devices; with
    `wire_dtype=jnp.float32`, of float32.

    Args:
      scatter: the label of the output that each device keeps its block of.
      wire_dtype: dtype of partial sums on the links; by default that of the result.
      spec, lhs, rhs, axis_name, schedule, precision, preferred_element_type, accumulator_dtype, chip:
        as `all_gather_einsum`.

    Returns:
      The result's local block; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip
    )
    return run(spec, lhs, rhs, Ends(scatter=(scatter, axis_name)), options)


def einsum_all_reduce(
    spec: str,
    lhs: Any,
    rhs: Any,
    *,
    axis_name: AxisName,
    schedule: str | Schedule = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
    accumulator_dtype: Any = None,
    wire_dtype: Any = None,
    chip: Chip | None = None,
) -> Any:
    """`jnp.einsum(spec, lhs, rhs)` summed over the devices of `axis_name`: `lax.psum` of the einsum.

    The sum is a reduce-scatter and an all-gather made of ring steps. It is rounded as
    `einsum_reduce_scatter` says, and equal on all devices.

    Args:
      spec, lhs, rhs, axis_name, schedule, precision, preferred_element_type, accumulator_dtype,
        wire_dtype, chip: as `einsum_reduce_scatter`; a "ring" schedule has no dot for each hop here,
        so use "chunked" for overlap.

    Returns:
      The result; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip
    )
    return run(spec, lhs, rhs, Ends(reduce=axis_name), options)


def all_gather_einsum_reduce_scatter(
    spec: str,
    lhs: Any,
    rhs: Any,
    *,
    gather_axis_name: AxisName,
    gather: str,
    scatter_axis_name: AxisName,
    scatter: str,
    schedule: str | Schedule = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
    accumulator_dtype: Any = None,
    wire_dtype: Any = None,
    chip: Chip | None = None,
) -> Any:
    """An all-gather before the einsum and a reduce-scatter after it, over different axes.

    The einsum of 2D weight-stationary layouts ("Efficiently Scaling Transformer Inference", section
    3.2.2), with both collectives hidden. Sums and tolerances are those of `all_gather_einsum` and
    `einsum_reduce_scatter`.

    Args:
      gather_axis_name, gather: what is gathered, as `all_gather_einsum`.
      scatter_axis_name, scatter: what is scattered, as `einsum_reduce_scatter`.
      spec, lhs, rhs, schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip:
        as there. `wire_dtype` is that of both collectives.

    Returns:
      The result's local block; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip
    )
    ends = Ends(gather=(gather, gather_axis_name), scatter=(scatter, scatter_axis_name))
    return run(spec, lhs, rhs, ends, options)


def run(text: str, lhs: Any, rhs: Any, ends: Ends, options: Options) -> Any:
    """An einsum with the collectives `ends`: what every public function comes down to."""
    several = isinstance(rhs, Sequence)
    rights = list(rhs) if isinstance(rhs, Sequence) else [rhs]
    if not rights:
        raise ValueError(f"einsum {text!r}: rhs is an empty sequence; give at least one operand")
    lhs, *rights = (x if isinstance(x, Quantized) else jnp.asarray(x) for x in (lhs, *rights))
    problems = [_Problem(text, lhs, right, ends, options) for right in rights]
    shared = all(p.moves_lhs and p.spec == problems[0].spec for p in problems)
    if several and shared and len({p.result for p in problems}) == 1:
        results = _apply(problems)
    else:
        results = [y for p in problems for y in _apply([p])]
    return results if several else results[0]


class _Problem:
    """One einsum with its collectives, checked and brought into the form of an `Operation`."""

    def __init__(self, text: str, lhs: Any, rhs: Any, ends: Ends, options: Options) -> None:
        self.options, self.ends = options, ends
        spec = specs.parse(text, lhs.shape, rhs.shape)
        gathering = None
        if ends.gather is not None:
            label, axis_name = ends.gather
            n = checks.axis_size(axis_name)
            gathering = specs.resolve_gather(
                spec, label, lhs.shape, rhs.shape, n=n, axis_name=axis_name
            )
        if ends.gather is not None and ends.scatter is not None:
            specs.check_both_ends(
                spec, ends.gather[0], ends.scatter[0],
                gather_axes=checks.axis_names(ends.gather[1]),
                scatter_axes=checks.axis_names(ends.scatter[1]),
            )
        self.sizes = checks.check_sizes(spec, lhs.shape, rhs.shape, gathering)
        devices = 1
        for end in (ends.scatter, ends.reduce and (None, ends.reduce)):
            devices *= checks.axis_size(end[1]) if end else 1
        found = dtypes.check_dtypes(
            spec, lhs, rhs, terms=dtypes.summed_terms(spec, self.sizes, devices),
            preferred_element_type=options.preferred_element_type,
        )
        self.result, self.accumulator = found.result, found.accumulator
        if options.accumulator_dtype is not None:
            self.accumulator = jnp.dtype(options.accumulator_dtype)
        if ends.scatter is not None:
            label, axis_name = ends.scatter
            n = checks.axis_size(axis_name)
            shapes = [[self.sizes[c] for c in labels] for labels in (spec.lhs, spec.rhs)]
            specs.resolve_scatter(spec, label, *shapes, n=n, axis_name=axis_name)
        self.moves_lhs = gathering is None or gathering.operand == "lhs"
        squeezed, *drop = checks.squeeze_broadcasts(spec, lhs.shape, rhs.shape, gathering)
        operands = [_squeeze(x, dims) for x, dims in zip((lhs, rhs), drop, strict=True)]
        self.spec = squeezed if self.moves_lhs else squeezed.swapped()
        self.lhs, self.rhs = operands if self.moves_lhs else reversed(operands)
        wire = options.wire_dtype
        given = options.schedule
        if wire is None and isinstance(given, Schedule):
            wire = given.wire_dtype
        sums = self.result if ends.gather is None or ends.scatter is not None else None
        if wire is not None:
            moving = self.lhs.values if isinstance(self.lhs, Quantized) else self.lhs
            travels = sums if sums is not None else moving.dtype
            wire = dtypes.check_wire_dtype(spec, wire, travels)
        self.wire = wire

    def scaled(self, y: Any) -> Any:
        """`y` times the scales of quantized operands."""
        out = self.spec.out
        for operand, labels in ((self.lhs, self.spec.lhs), (self.rhs, self.spec.rhs)):
            if not isinstance(operand, Quantized):
                continue
            _, scale = split_scale(self.spec, labels, operand, out)
            if self.ends.gather is not None and operand is self.lhs:
                label, axis_name = self.ends.gather
                if label in out and operand.scale.shape[labels.index(label)] != 1:
                    scale = collectives.all_gather(scale, axis_name, axis=out.index(label))
            if self.ends.scatter is not None:
                label, axis_name = self.ends.scatter
                dim, block = out.index(label), y.shape[out.index(label)]
                if scale.shape[dim] != 1:
                    start = lax.axis_index(checks.axis_names(axis_name)) * block
                    scale = lax.dynamic_slice_in_dim(scale, start, block, axis=dim)
            y = y * scale.astype(y.dtype)
        return y.astype(self.result)


def _squeeze(x: Any, dims: Sequence[int]) -> Any:
    if not dims:
        return x
    if isinstance(x, Quantized):
        return dataclasses.replace(
            x, values=lax.squeeze(x.values, dims), scale=lax.squeeze(x.scale, dims)
        )
    return lax.squeeze(x, dims)


def _apply(problems: list[_Problem]) -> list[Any]:
    """All results of problems that share lhs and spec."""
    first = problems[0]
    options, spec, ends = first.options, first.spec, first.ends
    quantized = any(isinstance(x, Quantized) for p in problems for x in (p.lhs, p.rhs))
    gather, scatter = (
        None if end is None else End(end[0], checks.axis_names(end[1]))
        for end in (ends.gather, ends.scatter)
    )
    reduce = () if ends.reduce is None else checks.axis_names(ends.reduce)
    op = Operation(
        "each", spec.lhs, spec.rhs, spec.out, gather, scatter, reduce,
        Schedule("blocking"), options.precision, first.accumulator,
        # Scales come after the sums, so nothing is rounded before them.
        first.accumulator if quantized else first.result,
        first.wire or first.result,
    )
    values = [x.values if isinstance(x, Quantized) else x for x in (first.lhs, *(p.rhs for p in problems))]
    schedule = choice.resolve(op, values, options.schedule, options.chip)
    op = dataclasses.replace(op, schedule=dataclasses.replace(schedule, wire_dtype=first.wire))
    return [p.scaled(y) for p, y in zip(problems, apply(op, *values), strict=True)]
