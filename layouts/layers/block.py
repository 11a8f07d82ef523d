"""The two kinds of block: parallel, with one norm and shared collectives, and serial."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax import lax

from ..mesh import axis_collectives as ax
from ..models.functions import norm_factors, norm_moments, normalize, wide
from ..models.stacked_params import LayerWeights
from ..partitionings.feedforward_layout import boundary_axes, boundary_shard, gather_features
from .attention import add_output_bias, attend_columns, project_heads
from .feedforward import columns_out, projected
from .layer_context import Past, Step
from .streamed_feedforward import stream


def block(
    x: jax.Array, weights: LayerWeights, step: Step, past: Past | None, prefix: Past | None
) -> tuple[jax.Array, Past]:
    """The block that the config says."""
    kind = parallel if step.config.block == "parallel" else serial
    return kind(x, weights, step, past, prefix)


def parallel(
    x: jax.Array, weights: LayerWeights, step: Step, past: Past | None, prefix: Past | None
) -> tuple[jax.Array, Past]:
    """x + attention(norm(x)) + feedforward(norm(x)); x is [rows, E over the rest].

    One all-gather serves q, k, v and the feedforward's input matrices, and one reduce-scatter both
    output matrices (section 3.4 of "Efficiently Scaling Transformer Inference", arXiv 2211.05102).
    """
    config, layout, schedules = step.config, step.feedforward, step.schedules
    c, inverse = normed(x, weights["norm"], step)
    inverse = inner_rows(inverse, step)
    if schedules.weight_ring is not None:
        c = gather_features(c, layout, config.d_model, schedules.given)
        columns, _ = project_heads(c, weights, step, inverse, [])
        o, new = attend_columns(columns, weights, step, past, prefix)
        terms = stream(c, inverse, weights, config, layout, [o], schedules.weight_ring)
    else:
        ffn = [weights[name] for name in config.input_names]
        columns, inner = project_heads(c, weights, step, inverse, ffn)
        o, new = attend_columns(columns, weights, step, past, prefix)
        h = columns_out(inner, inverse, weights, config, layout, schedules.given)
        o = o._replace(overlap_seconds=schedules.overlaps.w_o)
        h = h._replace(overlap_seconds=schedules.overlaps.w_out)
        if schedules.feedforward_last:
            first, then = lax.optimization_barrier((o.h, h.h))
            o, h = o._replace(h=first), h._replace(h=then, gather_overlapped=True)
        terms = [o, h]
    y = layout.project_out(terms, schedules.outputs or schedules.projections)
    return _sum(x, add_output_bias(y, weights, step, "b_o", "b_out")), new


def serial(
    x: jax.Array, weights: LayerWeights, step: Step, past: Past | None, prefix: Past | None
) -> tuple[jax.Array, Past]:
    """y = x + attention(norm(x)), then y + feedforward(norm_ffn(y)); x is [rows, E over the rest]."""
    layout, schedules = step.feedforward, step.schedules
    c, inverse = normed(x, weights["norm"], step)
    inverse = inner_rows(inverse, step)
    columns, _ = project_heads(c, weights, step, inverse, [])
    o, new = attend_columns(columns, weights, step, past, prefix)
    y = layout.project_out([o], schedules.projections)
    x = _sum(x, add_output_bias(y, weights, step, "b_o"))

    c, inverse = normed(x, weights["norm_ffn"], step)
    inverse = inner_rows(inverse, step)
    y = projected(c, inverse, weights, step.config, layout, schedules)
    return _sum(x, add_output_bias(y, weights, step, "b_out")), new


def normed(
    x: jax.Array, weights: Mapping[str, jax.Array], step: Step
) -> tuple[jax.Array, jax.Array | None]:
    """The norm of x [rows, E over the rest], and the factor [rows, 1] of its projections, or None.

    An rmsnorm divides each row by one number, which commutes with a matmul: the number's own
    reduction over devices then overlaps the matmul, and does not come before it. Not where the
    matmul leaves a chip with rows that it did not have.
    """
    config, layout = step.config, step.feedforward
    weights = {name: boundary_shard(layout, w, config.d_model) for name, w in weights.items()}
    moments = norm_moments(x, config.norm)
    moments = ax.all_reduce_few(moments, boundary_axes(layout), step.schedule)
    kept = layout.batch_axes in ((), layout.inner_batch_axes) and not layout.position_axes
    if config.norm != "rmsnorm" or not kept:
        return normalize(x, weights, config, moments), None
    _, inverse = norm_factors(moments, config.norm, config.d_model, config.norm_epsilon)
    scaled = x.astype(inverse.dtype) * weights["scale"].astype(inverse.dtype)
    return scaled.astype(x.dtype), inverse


def inner_rows(inverse: jax.Array | None, step: Step) -> jax.Array | None:
    """The factors that `normed` leaves to multiply by, of a chip's rows after `project_in`."""
    layout = step.feedforward
    if inverse is None or layout.batch_axes == layout.inner_batch_axes:
        return inverse
    return ax.own_block(inverse, layout.inner_batch_axes, 0)


def _sum(x: jax.Array, y: jax.Array) -> jax.Array:
    return (x.astype(wide(x.dtype)) + y.astype(wide(x.dtype))).astype(x.dtype)
