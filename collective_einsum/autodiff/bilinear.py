"""What einsums of two sides have in common, on shards and on global arrays: tangents, and dots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import jax

from ..execution.product import dimension_numbers
from ..ops.einsum_op import Form, products
from .primitive import Dot, Op, apply


class Bilinear(Op, Protocol):
    """Einsums with one lhs and a result for each rhs, or added up; see `ops.einsum_op`."""

    @property
    def form(self) -> Form:
        """ "shared_lhs" or "sum"."""
        ...

    @property
    def labels(self) -> tuple[str, str, str]:
        """Those of lhs, rhs and the result."""
        ...

    def split(self, operands: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
        """Every lhs, every rhs, and the scales of the results, or none."""
        ...


def tangents(
    op: Bilinear, operands: Sequence[Any], tangents: Sequence[Any]
) -> list[jax.Array | None]:
    """The tangents of the results: one term for each operand that has a tangent, but for scales."""
    lhs, rhs, scales = op.split(operands)
    dlhs, drhs, _ = op.split(tangents)
    totals: list[jax.Array | None] = [None] * (len(rhs) if op.form == "shared_lhs" else 1)
    for a, b in ((dlhs, rhs), (lhs, drhs)):
        if op.form == "shared_lhs":
            moved = [i for i, right in enumerate(b) if right is not None]
            if a[0] is None or not moved:
                continue
            terms = apply(op, a[0], *(b[i] for i in moved), *(scales[i] for i in moved if scales))
            for i, term in zip(moved, terms, strict=True):
                totals[i] = added(totals[i], term)
        else:
            moved = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
            if moved:
                pairs = [*(a[i] for i in moved), *(b[i] for i in moved)]
                totals[0] = added(totals[0], apply(op, *pairs)[0])
    return totals


def added(total: jax.Array | None, term: jax.Array) -> jax.Array:
    """The sum so far, with one term more."""
    return term if total is None else total + term


def dots(op: Bilinear, operands: Sequence[Any]) -> list[Dot]:
    """One dot for each rhs, or pair; see `primitive.Rules`."""
    lhs, rhs, _ = op.split(operands)
    numbers = dimension_numbers(*op.labels)
    return [(a, b, numbers) for a, b in products(op.form, lhs, rhs)]
