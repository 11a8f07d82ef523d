"""Multiplies results by the scales of quantized operands: all at the end, or each chunk by itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from . import collectives
from .normalize import NormalEinsum
from .ops.einsum_op import Operation
from .ops.feasibility import gathers_into_result
from .ops.schedule import Schedule
from .spec import sizes as checks
from .spec.quantized import Quantized, split_scale


def scale_result(einsum: NormalEinsum, y: jax.Array) -> jax.Array:
    """A result times the scales of the quantized operands, in the dtype of the result.

    Args:
      einsum: with lhs, rhs or both quantized, or neither.
      y: the local result of its dots and collectives, or a chunk of it.
    """
    out = einsum.spec.out
    for moved, operand, labels in (
        (einsum.gather is not None, einsum.lhs, einsum.spec.lhs),
        (False, einsum.rhs, einsum.spec.rhs),
    ):
        if not isinstance(operand, Quantized):
            continue
        _, scale = split_scale(einsum.spec, labels, operand, out)
        if moved and einsum.requested.gather is not None:
            label, axis_name = einsum.requested.gather
            d = labels.index(label)
            # A shard of size 1 has a scale of its own, too.
            if label in out and operand.scale.shape[d] == operand.shape[d]:
                kind = "blocking" if _is_blocking(einsum) else "latency"
                scale = collectives.all_gather(
                    scale, axis_name, axis=out.index(label), schedule=kind
                )
        if einsum.scatter is not None and einsum.requested.scatter is not None:
            dim, shard = einsum.scatter.out_dim, einsum.scatter.shard
            if scale.shape[dim] != 1:
                start = lax.axis_index(checks.axis_names(einsum.requested.scatter[1])) * shard
                scale = lax.dynamic_slice_in_dim(scale, start, shard, axis=dim)
        y = y * scale.astype(y.dtype)
    return y.astype(einsum.result)


def _is_blocking(einsum: NormalEinsum) -> bool:
    given = einsum.options.schedule
    return given == "blocking" or (isinstance(given, Schedule) and given.kind == "blocking")


def scales_chunks(op: Operation) -> bool:
    """Whether chunks of results are scaled one by one; otherwise a memory pass over all of them would
    scale them, after the last chunk."""
    label, schedule = op.schedule.label, op.schedule
    if not op.gathers_alone or schedule.kind != "chunked" or label is None:
        return False
    if gathers_into_result(op, label):
        return False
    return label in op.lhs and label in op.out and label not in op.rhs


def scale_of(einsum: NormalEinsum) -> jax.Array:
    """The scale that the result is multiplied by for its rhs, of as many dimensions as the result."""
    if not isinstance(einsum.rhs, Quantized):
        return jnp.ones([1] * len(einsum.spec.out), jnp.float32)
    return split_scale(einsum.spec, einsum.spec.rhs, einsum.rhs, einsum.spec.out)[1]
