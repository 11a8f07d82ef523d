"""The local steps of an einsum with collectives: its dots, conversions and lax's own collectives."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from ..chips.tiles import MATRIX_TILE, TILE_LANES, TILE_ROWS
from ..ops.einsum_op import Operation
from ..rings import slicing
from ..rings.permutes import total
from ..spec import sizes as checks
from .product import product


def multiply(op: Operation, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The einsum of two local slices, in the accumulator's dtype."""
    labels = (op.lhs, op.rhs, op.out)
    return product(labels, lhs, rhs, accumulator=op.accumulator, precision=op.precision)


def sum_as_sent(op: Operation, partial_sum: jax.Array) -> jax.Array:
    """A partial sum in the dtype in which it is sent."""
    return partial_sum.astype(op.sum_wire)


def as_sent(op: Operation, x: jax.Array) -> jax.Array:
    """The gathered operand in the dtype in which it is sent."""
    floating = jnp.issubdtype(x.dtype, jnp.inexact)
    return x.astype(op.schedule.wire_dtype) if op.schedule.wire_dtype and floating else x


def products(op: Operation, lhs: Sequence[jax.Array], rhs: Sequence[jax.Array]) -> list[jax.Array]:
    """The local results: one for each rhs, or the sum over the pairs."""
    if op.form == "shared_lhs":
        return [multiply(op, lhs[0], right) for right in rhs]
    terms = [multiply(op, a, b) for a, b in zip(lhs, rhs, strict=True)]
    return [functools.reduce(lambda partial_sum, term: term + partial_sum, terms)]


def scaled(op: Operation, y: jax.Array, scale: jax.Array) -> jax.Array:
    """A result, or a chunk of it, times the scale of its rhs, in the dtype of `op`."""
    return (y * scale.astype(y.dtype)).astype(op.dtype)


def in_rows(op: Operation, x: jax.Array, own: jax.Array, rhs: Sequence[jax.Array]) -> jax.Array:
    """What was gathered from shards like the own one, laid out in rows where this helps the dots."""
    # H18 in docs/compiler.md.
    widens = any(right.dtype.itemsize == 1 < x.dtype.itemsize for right in rhs)
    columns = op.gather is not None and op.gather.label == op.lhs[-1] and op.lhs[-1] not in op.out
    if not (op.in_rows and widens and columns) or checks.symbolic(*x.shape):
        return x
    if own.shape[-1] % TILE_LANES == 0 or x.size // x.shape[-1] < MATRIX_TILE:
        return x
    # Imported where it is used: most programs need no layouts.
    from jax.experimental.layout import Layout, with_layout_constraint

    rows = Layout(major_to_minor=tuple(range(x.ndim)))
    return lax.optimization_barrier(with_layout_constraint(x, rows))


def lax_gather(op: Operation, x: jax.Array, axes: tuple[str, ...], dim: int) -> jax.Array:
    """`x` with all shards along `dim`, by `lax.all_gather`."""
    return lax.all_gather(as_sent(op, x), axes, axis=dim, tiled=True).astype(x.dtype)


def lax_scatter(op: Operation, y: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """The device's block of the sum of `y` over `axes`, by `psum_scatter`."""
    dim = op.out.index(op.scatter.label) if op.scatter is not None else 0
    return psum_scatter(sum_as_sent(op, y), axes, dim)


def psum_scatter(y: jax.Array, axes: tuple[str, ...], dim: int) -> jax.Array:
    """`lax.psum_scatter` along `dim`, tiled, as the TPU compiler keeps it one.

    The shards get a dimension of their own: if the scatter splits the last dimension, over the vector
    unit's lanes, the TPU compiler makes an all-reduce and a slice of it, which move twice the bytes. It
    does so too if the scatter splits rows into blocks that are no full tiles; so those are sent as
    rows of 128 lanes.
    """
    n = total(axes)
    if checks.symbolic(*y.shape):
        return lax.psum_scatter(y, axes, scatter_dimension=dim, tiled=True)
    # StableHLO has no scatter of nothing.
    if 0 in y.shape:
        return lax.slice_in_dim(y, 0, y.shape[dim] // n, axis=dim)
    # H11 in docs/compiler.md.
    y = slicing.split(y, dim, (n, y.shape[dim] // n))
    block = (*y.shape[:dim], *y.shape[dim + 1 :])
    rows = math.prod(block[:-1])
    if dim == 0 and len(block) > 1 and rows % TILE_ROWS and math.prod(block) % TILE_LANES == 0:
        flat = lax.psum_scatter(
            y.reshape(n, -1, TILE_LANES), axes, scatter_dimension=0, tiled=False
        )
        return flat.reshape(block)
    return lax.psum_scatter(y, axes, scatter_dimension=dim, tiled=False)
