"""The einsum of two local operands."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from opt_einsum import parser as oe_parser

from ..chips.tiles import TILE_ROWS
from ..spec import sizes as checks

# The elements from which a matrix is worth a dot.
LARGE = 2**16


def product(
    labels: tuple[str, str, str],
    lhs: jax.Array,
    rhs: jax.Array,
    *,
    accumulator: DTypeLike,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """The einsum of lhs and rhs, whose labels and those of the result are given, in `accumulator`.

    Operands of other dtypes are multiplied in that of the floating one where the other holds
    integers.
    """
    if lhs.dtype != rhs.dtype:
        wide = _common(lhs.dtype, rhs.dtype, accumulator)
        lhs, rhs = lhs.astype(wide), rhs.astype(wide)
    single = not checks.symbolic(*lhs.shape, *rhs.shape) and _is_one_row(labels, lhs, rhs)
    if single:
        # H1 in docs/compiler.md: a dot of one row is a vector loop.
        label = fresh_label("".join(labels))
        side = 0 if lhs.size < rhs.size else 1
        row = (lhs, rhs)[side]
        padded = lax.optimization_barrier(jnp.broadcast_to(row, (TILE_ROWS, *row.shape)))
        lhs, rhs = (padded, rhs) if side == 0 else (lhs, padded)
        left, right, out = (label + c if i in (side, 2) else c for i, c in enumerate(labels))
    else:
        left, right, out = labels
    y = jnp.einsum(
        f"{left},{right}->{out}", lhs, rhs, precision=precision, preferred_element_type=accumulator
    )
    return y[0] if single else y


def _is_one_row(labels: tuple[str, str, str], lhs: jax.Array, rhs: jax.Array) -> bool:
    """Whether one operand is a single row, and the other large."""
    sizes = dict(zip(labels[0] + labels[1], (*lhs.shape, *rhs.shape), strict=True))
    contracted = math.prod(n for label, n in sizes.items() if label not in labels[2])
    return min(lhs.size, rhs.size) == contracted and max(lhs.size, rhs.size) >= LARGE


def fresh_label(used: str) -> str:
    """A label that is not in use."""
    return next(c for c in map(oe_parser.get_symbol, itertools.count()) if c not in used)


def dimension_numbers(lhs: str, rhs: str, out: str) -> lax.DotDimensionNumbers:
    """The dimension numbers of `lax.dot_general`: contracting and batch dimensions of lhs and rhs."""
    both = [c for c in dict.fromkeys(lhs) if c in rhs]
    summed, batch = ([c for c in both if (c in out) == kept] for kept in (False, True))

    def dims(labels: str, chosen: list[str]) -> tuple[int, ...]:
        return tuple(labels.index(c) for c in chosen)

    return (dims(lhs, summed), dims(rhs, summed)), (dims(lhs, batch), dims(rhs, batch))


def _common(lhs: jnp.dtype, rhs: jnp.dtype, accumulator: DTypeLike) -> DTypeLike:
    """One dtype to multiply in, which holds every value of both, or of the floating one where the
    other holds integers."""
    floating = [d for d in (lhs, rhs) if not jnp.issubdtype(d, jnp.integer)]
    if len(floating) == 1:
        return floating[0]
    if not floating:
        return accumulator
    if all(jnp.issubdtype(d, jnp.floating) for d in floating):
        # Formats of 8 bits have no implicit promotion.
        choices = [lhs, rhs, jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)]
        held = [d for d in choices if _holds(d, lhs) and _holds(d, rhs)]
        return held[0] if held else jnp.promote_types(lhs, rhs)
    return jnp.promote_types(lhs, rhs)


def _holds(wide: jnp.dtype, narrow: jnp.dtype) -> bool:
    """Whether one floating dtype has all the finite values of the other."""
    a, b = jnp.finfo(wide), jnp.finfo(narrow)
    return a.nmant >= b.nmant and a.minexp <= b.minexp and a.maxexp >= b.maxexp
