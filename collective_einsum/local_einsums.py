"""The einsums with a collective before, after or both, on local shards inside `shard_map`."""

from __future__ import annotations

from typing import Any

from jax import lax
from jax.typing import DTypeLike

from . import plain_einsum as plain
from .chips.chip import Chip
from .ops.request import AxisName, Options, RequestedCollectives
from .ops.schedule import Schedule
from .schedule_and_run import run
from .spec.quantized import OperandLike, OperandsLike


def all_gather_einsum(
    spec: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    *,
    axis_name: AxisName,
    gather: str,
    schedule: str | Schedule = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    overlap_seconds: float = 0.0,
    chip: Chip | str | None = None,
) -> Any:
    """`jnp.einsum(spec, lhs, rhs)` of operands one of which is all-gathered on the way.

    Equal to `lax.all_gather(..., tiled=True)` of the operand that holds one shard of label
    `gather`, then the einsum: "Efficiently Scaling Transformer Inference", section 3.5. Works
    inside `shard_map`, under jit, vmap, scan, grad, jvp and remat. The backward pass is the
    mirrored function (`einsum_reduce_scatter`), under a schedule of its own if this is "auto", else
    under the same; its residuals are the local shards. Checkpoint policies that save dots save the
    result, and those by name know it, as those of all functions here, by that of the function:
    "ce.all_gather_einsum".

    Order of summation: within a dot, the compiler's; over shards of a contracted label, the own
    shard first and then in order of arrival, so it differs from device to device but never from run
    to run: the same inputs give the same bits. Against plain einsum the result is within a few
    roundings of `accumulator_dtype` times the number of shards, and exact for integers.

    Args:
      spec: an einsum of two operands; `...` and an implicit output are allowed.
      lhs: an array, or a `Quantized`; local shards.
      rhs: likewise, or a sequence of those that share lhs and its one gather.
      axis_name: mesh axis or axes to gather over. A tuple orders shards as lax does, major first.
      gather: the label whose shards are gathered. If both operands have it, the one that holds a
        shard is distinguished by its size.
      schedule: "auto" (`choose_schedule`), "blocking", "unidirectional", "bidirectional",
        "latency", "chunked", "async", or a `Schedule`. What is named is used or refused.
      precision: of the dots, as in `jnp.einsum`.
      preferred_element_type: dtype of the result; by default that of `jnp.einsum`.
      accumulator_dtype: dtype of dots and sums; float32 unless the result is wider, or integer.
      wire_dtype: dtype on the links; by default that of the gathered operand.
      overlap_seconds: seconds of independent compute that can overlap the collective: the gather,
        or the scatter of the last result. Only schedule="auto" uses it, where the compiler makes
        lax's own collective asynchronous; see `compiler_options`.
      chip: whose costs "auto" reckons with, itself or its name; by default that of the mesh.

    Returns:
      The result's local shard; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule=schedule,
        precision=precision,
        preferred_element_type=preferred_element_type,
        accumulator_dtype=accumulator_dtype,
        wire_dtype=wire_dtype,
        overlap_seconds=overlap_seconds,
        chip=chip,
    )
    return _run(spec, lhs, rhs, RequestedCollectives(gather=(gather, axis_name)), options)


def einsum_reduce_scatter(
    spec: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    *,
    axis_name: AxisName,
    scatter: str,
    schedule: str | Schedule = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    overlap_seconds: float = 0.0,
    chip: Chip | str | None = None,
) -> Any:
    """`jnp.einsum(spec, lhs, rhs)` summed over the devices of `axis_name`, a block of it on each.

    Equal to the einsum, then `lax.psum_scatter(..., tiled=True)` along label `scatter` of the
    output. A block's sum starts on the device furthest away and is added to on its way home, in
    `accumulator_dtype`, rounded to `wire_dtype` at every hop: the same inputs give the same bits.
    Against plain einsum it is within n roundings of the wire's dtype over n devices; with
    `wire_dtype=jnp.float32`, of float32.

    Args:
      scatter: the label of the output that each device keeps its block of.
      wire_dtype: dtype of partial sums on the links; by default that of the result.
      spec, lhs, rhs, axis_name, schedule, precision, preferred_element_type, accumulator_dtype,
        overlap_seconds, chip: as `all_gather_einsum`. The scale of a `Quantized` must be the same
        on all devices.

    Returns:
      The result's local block; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule=schedule,
        precision=precision,
        preferred_element_type=preferred_element_type,
        accumulator_dtype=accumulator_dtype,
        wire_dtype=wire_dtype,
        overlap_seconds=overlap_seconds,
        chip=chip,
    )
    return _run(spec, lhs, rhs, RequestedCollectives(scatter=(scatter, axis_name)), options)


def einsum_all_reduce(
    spec: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    *,
    axis_name: AxisName,
    schedule: str | Schedule = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    overlap_seconds: float = 0.0,
    chip: Chip | str | None = None,
) -> Any:
    """`jnp.einsum(spec, lhs, rhs)` summed over the devices of `axis_name`, as by `lax.psum`.

    The sum is a reduce-scatter and an all-gather made of ring steps. It is rounded as
    `einsum_reduce_scatter` says, and equal on all devices.

    Args:
      spec, lhs, rhs, axis_name, schedule, precision, preferred_element_type, accumulator_dtype,
        wire_dtype, overlap_seconds, chip: as `einsum_reduce_scatter`. There is no dot here for each
        hop: a ring schedule is the einsum and then the ring, and "chunked" is what overlaps.

    Returns:
      The result; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule=schedule,
        precision=precision,
        preferred_element_type=preferred_element_type,
        accumulator_dtype=accumulator_dtype,
        wire_dtype=wire_dtype,
        overlap_seconds=overlap_seconds,
        chip=chip,
    )
    return _run(spec, lhs, rhs, RequestedCollectives(reduce=axis_name), options)


def all_gather_einsum_reduce_scatter(
    spec: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    *,
    gather_axis_name: AxisName,
    gather: str,
    scatter_axis_name: AxisName,
    scatter: str,
    schedule: str | Schedule = "auto",
    precision: lax.PrecisionLike = None,
    preferred_element_type: DTypeLike | None = None,
    accumulator_dtype: DTypeLike | None = None,
    wire_dtype: DTypeLike | None = None,
    overlap_seconds: float = 0.0,
    chip: Chip | str | None = None,
) -> Any:
    """An all-gather before the einsum and a reduce-scatter after it, over different axes.

    The einsum of 2D weight-stationary layouts ("Efficiently Scaling Transformer Inference", section
    3.2.2), with both collectives hidden. Sums and tolerances are those of `all_gather_einsum` and
    `einsum_reduce_scatter`.

    Args:
      gather_axis_name, gather: what is gathered, as `all_gather_einsum`.
      scatter_axis_name, scatter: what is scattered, as `einsum_reduce_scatter`.
      spec, lhs, rhs, schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype,
        overlap_seconds, chip: as there. `wire_dtype` is that of both collectives.

    Returns:
      The result's local block; a list of them if `rhs` is a sequence.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    options = Options(
        schedule=schedule,
        precision=precision,
        preferred_element_type=preferred_element_type,
        accumulator_dtype=accumulator_dtype,
        wire_dtype=wire_dtype,
        overlap_seconds=overlap_seconds,
        chip=chip,
    )
    requested = RequestedCollectives(
        gather=(gather, gather_axis_name), scatter=(scatter, scatter_axis_name)
    )
    return _run(spec, lhs, rhs, requested, options)


def _run(
    spec: str,
    lhs: OperandLike,
    rhs: OperandsLike,
    requested: RequestedCollectives,
    options: Options,
) -> Any:
    plain.say_if_replaced(requested.name)
    return run(spec, lhs, rhs, requested, options)
