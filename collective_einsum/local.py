"""The part of an operation that needs no communication."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .operation import Operation


def products(op: Operation, lhs: Sequence[Any], rhs: Sequence[Any]) -> list[Any]:
    """The local results: one for each rhs, or the sum over the pairs."""
    if op.form == "each":
        return [op.product(lhs[0], each) for each in rhs]
    terms = [op.product(a, b) for a, b in zip(lhs, rhs, strict=True)]
    return [functools.reduce(lambda total, term: term + total, terms)]
