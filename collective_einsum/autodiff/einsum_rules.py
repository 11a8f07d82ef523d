"""How einsums with collectives differentiate and batch: their derivatives are such einsums again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ..execution.local_ops import scaled
from ..execution.product import dimension_numbers, fresh_label
from ..execution.run_einsum import run_einsum
from ..ops.collective_op import Collective
from ..ops.einsum_op import EinsumCollective, Operation
from .primitive import Dot, Rules, apply, checks_vma, register


def _tangents(
    op: Operation, operands: Sequence[jax.Array], tangents: Sequence[jax.Array | None]
) -> list[jax.Array | None]:
    """The tangents of the results: one term for each operand that has a tangent."""
    lhs, rhs, scales = op.split(operands)
    dlhs, drhs, dscales = op.split(tangents)
    totals: list[jax.Array | None] = [None] * (len(rhs) if op.form == "shared_lhs" else 1)

    def add(places: Sequence[int], values: Sequence[jax.Array]) -> None:
        for i, value in zip(places, values, strict=True):
            total = totals[i]
            totals[i] = value if total is None else total + value

    for a, b in ((dlhs, rhs), (lhs, drhs)):
        if op.form == "shared_lhs":
            moved = [i for i, right in enumerate(b) if right is not None]
            if a[0] is not None and moved:
                factors = [scales[i] for i in moved] if scales else []
                add(moved, apply(op, a[0], *(b[i] for i in moved), *factors))
        else:
            moved = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
            if moved:
                add([0], apply(op, *(a[i] for i in moved), *(b[i] for i in moved)))
    factors = {i: tangent for i, tangent in enumerate(dscales) if tangent is not None}
    if factors:
        results = apply(_unscaled(op), lhs[0], *(rhs[i] for i in factors))
        pairs = zip(results, factors.values(), strict=True)
        add(list(factors), [scaled(op, y, by) for y, by in pairs])
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
        return apply(dataclasses.replace(mirrored, form="shared_lhs"), cts[0], *rhs)
    if op.scatter is None or len(cts) == 1:
        form = "sum" if op.scatter is None else "shared_lhs"
        return apply(dataclasses.replace(mirrored, form=form), *cts, *rhs)
    # Both collectives and several results: every cotangent is gathered before its product.
    gathered = [_gathered(op, ct, op.scatter) for ct in cts]
    return apply(dataclasses.replace(mirrored, form="sum", gather=None), *gathered, *rhs)


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
        results = apply(mirrored, cts[0], *lefts)
    else:
        chosen = [ct for ct, is_wanted in zip(cts, wanted, strict=True) if is_wanted]
        if op.scatter is not None:
            chosen = [_gathered(op, ct, op.scatter) for ct in chosen]
        mirrored = dataclasses.replace(op, rhs=op.out, out=op.rhs, scatter=None)
        results = apply(mirrored, lhs[0], *chosen)
    rest = iter(results)
    return [next(rest) if is_wanted else None for is_wanted in wanted]


def _gathered(op: Operation, ct: jax.Array, scatter: EinsumCollective) -> jax.Array:
    """A result's cotangent, all-gathered over the axes of its scatter."""
    gather = Collective(
        kind="all_gather",
        dim=op.out.index(scatter.label),
        axes=scatter.axes,
        schedule=op.schedule,
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


def _dots(op: Operation, operands: Sequence[jax.Array]) -> list[Dot]:
    """One dot for each rhs, or pair."""
    lhs, rhs, _ = op.split(operands)
    lefts = lhs * len(rhs) if op.form == "shared_lhs" else lhs
    numbers = dimension_numbers(op.lhs, op.rhs, op.out)
    return [(a, b, numbers) for a, b in zip(lefts, rhs, strict=True)]


register(
    Operation,
    Rules(
        run=run_einsum,
        tangents=_tangents,
        transpose=_transpose,
        batched=_batched,
        dots=_dots,
    ),
)
