"""The parts of an operation that no ring takes part in: its dots, and lax's own collectives."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jax import lax

from . import blocks, ring

if TYPE_CHECKING:
    from .operation import Operation


def products(op: Operation, lhs: Sequence[Any], rhs: Sequence[Any]) -> list[Any]:
    """The local results: one for each rhs, or the sum over the pairs."""
    if op.form == "each":
        return [op.product(lhs[0], each) for each in rhs]
    terms = [op.product(a, b) for a, b in zip(lhs, rhs, strict=True)]
    return [functools.reduce(lambda total, term: term + total, terms)]


def lax_gather(op: Operation, x: Any, axes: tuple[str, ...], dim: int) -> Any:
    """`x` whole along `dim`, by `lax.all_gather`."""
    return lax.all_gather(op.moving(x), axes, axis=dim, tiled=True).astype(x.dtype)


def lax_scatter(op: Operation, y: Any, axes: tuple[str, ...]) -> Any:
    """The device's block of the sum of `y` over `axes`, by `lax.psum_scatter`.

    Of a dimension of its own: along a dimension that is split over lanes, the TPU compiler makes an
    all-reduce and a slice of it, which move twice the bytes.
    """
    dim = op.out.index(op.scatter.label) if op.scatter is not None else 0
    n = ring.total(axes)
    y = blocks.split(op.wire(y), dim, (n, y.shape[dim] // n))
    return lax.psum_scatter(y, axes, scatter_dimension=dim, tiled=False)
