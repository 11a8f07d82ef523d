"""The two kinds of block: parallel, with one norm and shared collectives, and serial."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from jax import lax

from ..mesh import axis_collectives as ax
from ..models.functions import add_residual
from ..models.norms import joined_moments, norm_factors, norm_moments, norm_scale, normalize
from ..models.stacked_params import LayerWeights
from ..partitionings.feedforward_layout import boundary_axes, boundary_shard, gather_features
from .attention import add_output_bias, attend_columns, project_heads
from .feedforward import columns_out, input_matrices, projected
from .int8_activations import outgoing
from .layer_context import Past, Step
from .routing import Routing, add_expert_bias, route
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
    routing = route(c, inverse, weights, config, layout, step.counted)
    inverse = inner_rows(inverse, step)
    if schedules.weight_ring is not None:
        c = gather_features(c, layout, config.d_model, schedules.given)
        columns, _ = project_heads(c, weights, step, inverse, [])
        o, new = attend_columns(columns, weights, step, past, prefix)
        terms = stream(c, inverse, weights, config, layout, [o], schedules.weight_ring)
    else:
        ffn = input_matrices(weights, config)
        columns, inner = project_heads(c, weights, step, inverse, ffn)
        o, new = attend_columns(columns, weights, step, past, prefix)
        h, *rest = columns_out(inner, inverse, weights, config, layout, schedules.given, routing)
        o = o._replace(overlap_seconds=schedules.overlaps.w_o)
        h = h._replace(overlap_seconds=schedules.overlaps.w_out)
        if schedules.feedforward_last:
            first, then = lax.optimization_barrier((o.h, h.h))
            o, h = o._replace(h=first), h._replace(h=then, gather_overlapped=True)
        terms = [o, h, *rest]
    out = schedules.outputs or schedules.projections
    y = layout.project_out(outgoing(terms, config, layout, out), out)
    y = add_output_bias(y, weights, step, "b_o")
    y = _add_feedforward_bias(y, weights, step, routing)
    return add_residual(x, y, config=config), new


def serial(
    x: jax.Array, weights: LayerWeights, step: Step, past: Past | None, prefix: Past | None
) -> tuple[jax.Array, Past]:
    """y = x + attention(norm(x)), then y + feedforward(norm_ffn(y)); x is [rows, E over the rest].

    Norms after attention and the feedforward, where the config has them, come before these sums.
    """
    config, layout, schedules = step.config, step.feedforward, step.schedules
    c, inverse = _before(x, weights, "norm", step)
    columns, _ = project_heads(c, weights, step, inner_rows(inverse, step), [])
    o, new = attend_columns(columns, weights, step, past, prefix)
    out = schedules.projections
    y = layout.project_out(outgoing([o], config, layout, out), out)
    y = _after(add_output_bias(y, weights, step, "b_o"), weights, "norm_after", step)
    x = add_residual(x, y, config=config)

    c, inverse = _before(x, weights, "norm_ffn", step)
    routing = route(c, inverse, weights, config, layout, step.counted)
    y = projected(c, inner_rows(inverse, step), weights, config, layout, schedules, routing)
    y = _add_feedforward_bias(y, weights, step, routing)
    y = _after(y, weights, "norm_after_ffn", step)
    return add_residual(x, y, config=config), new


def _before(
    x: jax.Array, weights: LayerWeights, name: str, step: Step
) -> tuple[jax.Array, jax.Array | None]:
    """`normed`; x where there is no such norm."""
    if name not in step.config.norm_names:
        return x, None
    return normed(x, weights[name], step)


def _add_feedforward_bias(
    y: jax.Array, weights: LayerWeights, step: Step, routing: Routing | None
) -> jax.Array:
    """y plus b_out, if there is one."""
    if routing is None or "b_out" not in weights:
        return add_output_bias(y, weights, step, "b_out")
    return add_expert_bias(y, weights["b_out"], routing, step.config, step.feedforward)


def _after(y: jax.Array, weights: LayerWeights, name: str, step: Step) -> jax.Array:
    """The norm of what attention or the feedforward add; y where there is none."""
    if name not in step.config.norm_names:
        return y
    return norm_of(y, weights[name], step)


def norm_of(y: jax.Array, weights: Mapping[str, jax.Array], step: Step) -> jax.Array:
    """The norm of y [rows, E over the rest]."""
    return normalize(y, _own_scales(weights, step), step.config, _moments(y, step))


def normed(
    x: jax.Array, weights: Mapping[str, jax.Array], step: Step
) -> tuple[jax.Array, jax.Array | None]:
    """The norm of x [rows, E over the rest], and the factor [rows, 1] of its projections, or None.

    An rmsnorm divides each row by one number, which commutes with a matmul: the number's own
    reduction over devices then overlaps the matmul, and does not come before it. Not where the
    matmul leaves a chip with rows that it did not have.
    """
    config, layout = step.config, step.feedforward
    in_hops = step.schedules.norms_in_hops
    weights, moments = _own_scales(weights, step), _moments(x, step, in_hops=in_hops)
    kept = layout.batch_axes in ((), layout.inner_batch_axes) and not layout.position_axes
    if config.norm != "rmsnorm" or not kept:
        return normalize(x, weights, config, moments), None
    _, inverse = norm_factors(moments, config.norm, config.d_model, config.norm_epsilon)
    scaled = x.astype(inverse.dtype) * norm_scale(weights["scale"], config).astype(inverse.dtype)
    return scaled.astype(x.dtype), inverse


def _own_scales(weights: Mapping[str, jax.Array], step: Step) -> dict[str, jax.Array]:
    size = step.config.d_model
    return {name: boundary_shard(step.feedforward, w, size) for name, w in weights.items()}


def _moments(x: jax.Array, step: Step, *, in_hops: bool = False) -> jax.Array:
    """The moments of rows, of which x [rows, E over the rest] has a slice; `in_hops` as
    `all_reduce_few`."""
    moments, axes = norm_moments(x, step.config.norm), boundary_axes(step.feedforward)
    if step.config.norm == "rmsnorm":
        return ax.all_reduce_few(moments, axes, step.schedule, in_hops=in_hops)
    size = x.shape[-1]
    for axis in ax.live(axes):
        moments = joined_moments(ax.all_gather(moments[None], (axis,), 0, step.schedule), size)
        size *= ax.axis_size(axis)
    return moments


def inner_rows(inverse: jax.Array | None, step: Step) -> jax.Array | None:
    """The factors that `normed` leaves to multiply by, of a chip's rows after `project_in`."""
    layout = step.feedforward
    if inverse is None or layout.batch_axes == layout.inner_batch_axes:
        return inverse
    return ax.own_block(inverse, layout.inner_batch_axes, 0)
