"""How einsums with collectives differentiate and batch: their derivatives are such einsums again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ..cost.select import derived
from ..execution.local_ops import scaled
from ..execution.product import fresh_label
from ..execution.run_einsum import run_einsum
from ..ops.collective_op import Collective
from ..ops.einsum_op import EinsumCollective, Operation
from ..ops.schedule import Schedule
from . import bilinear
from .primitive import Rules, apply, checks_vma, register


def _tangents(
    op: Operation, operands: Sequence[jax.Array], tangents: Sequence[jax.Array | None]
) -> list[jax.Array | None]:
    """The tangents of the results: one term for each operand that has a tangent, scales too."""
    totals = bilinear.tangents(op, operands, tangents)
    lhs, rhs, _ = op.split(operands)
    factors = {i: t for i, t in enumerate(op.split(tangents)[2]) if t is not None}
    if factors:
        results = apply(_unscaled(op), lhs[0], *(rhs[i] for i in factors))
        for (i, by), y in zip(factors.items(), results, strict=True):
            totals[i] = bilinear.added(totals[i], scaled(op, y, by))
    return totals


def _unscaled(op: Operation) -> Operation:
    """The operation whose results are not yet multiplied by their scales."""
    return dataclasses.replace(op, scaled=False, dtype=jnp.dtype(op.accumulator))


def _transpose(
    op: Operation, cotangents: Sequence[jax.Array], operands: Sequence[jax.Array | None]
) -> list[jax.Array | None]:
    """The cotangents of the operands that are None, by the mirrored operation."""
    lhs, rhs, scales = op.split(operands)
    if scales:
        # A tangent of a scale makes results of its own, so that all scales are known here.
        unscaled, factors = _unscaled(op), [jnp.asarray(scale) for scale in scales]
        cts = [
            scaled(unscaled, ct.astype(unscaled.dtype), by)
            for ct, by in zip(cotangents, factors, strict=True)
        ]
        return [*_transpose(unscaled, cts, [*lhs, *rhs]), *(None for _ in scales)]
    cts = [ct.astype(op.dtype) for ct in cotangents]
    if op.reduce and not checks_vma(op.reduce):
        # As lax.psum, which is its own transpose where replication is not tracked.
        cts = [lax.psum(ct, op.reduce) for ct in cts]
    plain = dataclasses.replace(op, reduce=())
    if any(left is None for left in lhs):
        return [*_lhs_cotangents(plain, cts, rhs), *(None for _ in rhs)]
    wanted = [right is None for right in rhs]
    return [*(None for _ in lhs), *_rhs_cotangents(plain, cts, lhs, wanted)]


def _lhs_cotangents(
    op: Operation, cts: Sequence[jax.Array], rhs: Sequence[jax.Array | None]
) -> list[jax.Array]:
    """The gather becomes a scatter and the scatter a gather."""
    mirrored = dataclasses.replace(
        op, lhs=op.out, rhs=op.rhs, out=op.lhs, gather=op.scatter, scatter=op.gather
    )
    if op.form == "sum":
        return _apply(dataclasses.replace(mirrored, form="shared_lhs"), cts[0], *rhs)
    if op.scatter is None or len(cts) == 1:
        form = "sum" if op.scatter is None else "shared_lhs"
        return _apply(dataclasses.replace(mirrored, form=form), *cts, *rhs)
    # Both collectives and several results: every cotangent is gathered before its product.
    gathered = [_gathered(op, ct, op.scatter) for ct in cts]
    return _apply(dataclasses.replace(mirrored, form="sum", gather=None), *gathered, *rhs)


def _rhs_cotangents(
    op: Operation,
    cts: Sequence[jax.Array],
    lhs: Sequence[jax.Array | None],
    wanted: Sequence[bool],
) -> list[jax.Array | None]:
    """The gradients of the `wanted` right operands; None for the others."""
    if op.form == "sum":
        mirrored = dataclasses.replace(
            op,
            form="shared_lhs",
            lhs=op.out,
            rhs=op.lhs,
            out=op.rhs,
            gather=op.scatter,
            scatter=None,
        )
        lefts = [x for x, is_wanted in zip(lhs, wanted, strict=True) if is_wanted]
        results = _apply(mirrored, cts[0], *lefts)
    else:
        chosen = [ct for ct, is_wanted in zip(cts, wanted, strict=True) if is_wanted]
        if op.scatter is not None:
            chosen = [_gathered(op, ct, op.scatter) for ct in chosen]
        mirrored = dataclasses.replace(op, rhs=op.out, out=op.rhs, scatter=None)
        results = _apply(mirrored, lhs[0], *chosen)
    rest = iter(results)
    return [next(rest) if is_wanted else None for is_wanted in wanted]


def _apply(op: Operation, *operands: jax.Array | None) -> list[jax.Array]:
    """The results of a derived operation, under a schedule of its own where no name was given."""
    known = [x for x in operands if x is not None]
    return apply(derived(op, known), *known)


def _gathered(op: Operation, ct: jax.Array, scatter: EinsumCollective) -> jax.Array:
    """A result's cotangent, all-gathered over the axes of its scatter.

    The dots that follow wait for all of it: where no schedule was named, lax gathers.
    """
    blocking = Schedule("blocking", wire_dtype=op.schedule.wire_dtype)
    gather = Collective(
        kind="all_gather",
        dim=op.out.index(scatter.label),
        axes=scatter.axes,
        schedule=op.schedule if op.chosen_for is None else blocking,
    )
    return apply(gather, ct)[0]


def _batched(
    op: Operation,
    dims: Sequence[int | None],
    operands: Sequence[jax.Array],
    over: tuple[str, ...],
) -> tuple[Operation, list[jax.Array]]:
    """The batch becomes a label of its own, the first one."""
    label = fresh_label(op.lhs + op.rhs)
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)

    def lead(x: jax.Array, d: int | None) -> jax.Array:
        if d is None:
            return jnp.broadcast_to(x, (size, *x.shape))
        return jnp.moveaxis(x, d, 0)

    lhs, rhs, scales = op.split(tuple(zip(operands, dims, strict=True)))
    right_mapped = any(d is not None for _, d in rhs)
    # One side of the dots has the batch, also where scales alone have it.
    left_mapped = any(d is not None for _, d in lhs) or not right_mapped
    sides = ((lhs, left_mapped), (rhs, right_mapped), (scales, True))
    moved = [lead(x, d) if mapped else x for side, mapped in sides for x, d in side]
    left, right = (label if mapped else "" for mapped in (left_mapped, right_mapped))
    batched = dataclasses.replace(op, lhs=left + op.lhs, rhs=right + op.rhs, out=label + op.out)
    return batched, moved


register(
    Operation,
    Rules(
        run=run_einsum,
        tangents=_tangents,
        transpose=_transpose,
        batched=_batched,
        dots=bilinear.dots,
    ),
)
