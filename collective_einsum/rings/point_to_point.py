"""Collectives that send the slice for each other device point-to-point, all in one superstep."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
from jax import lax
from jax.typing import DTypeLike

from . import slicing
from .permutes import exchange, total
from .slicing import Index
from .steps import Steps


def all_to_all(x: jax.Array, axes: tuple[str, ...], split: int, concat: int) -> Steps:
    """Sends slice `i` of dimension `split` to device `i`, and joins what arrives along `concat`."""
    arriving = yield _send_slices(x, axes, split)
    n = len(arriving)
    shape = list(arriving[0].shape)
    shape.insert(concat, n)
    joined = lax.empty(tuple(shape), x.dtype)
    for by, arrived in zip(_offsets(axes), arriving, strict=True):
        source = _device(axes, by, -1)
        joined = lax.dynamic_update_index_in_dim(joined, arrived, source, concat)
    return slicing.merge(joined, concat, 2)


def reduce_scatter(
    x: jax.Array,
    axes: tuple[str, ...],
    dim: int,
    *,
    wire: Callable[[jax.Array], jax.Array],
    accumulator: DTypeLike,
) -> Steps:
    """As `multi_axis.reduce_scatter`; sends more bytes, but in one superstep.

    The own slice is rounded for the wire too, so that the dot need not write its result twice.
    """
    arriving = yield _send_slices(wire(x), axes, dim)
    own, *others = (arrived.astype(accumulator) for arrived in arriving)
    return sum(others, own)


def _send_slices(x: jax.Array, axes: tuple[str, ...], dim: int) -> list[jax.Array]:
    """The slices of `dim` that all devices have for this one, in the order of `_offsets`."""
    n = total(axes)
    x = slicing.split(x, dim, (n, x.shape[dim] // n))
    arriving = []
    for by in _offsets(axes):
        sent = lax.dynamic_index_in_dim(x, _device(axes, by, 1), dim, keepdims=False)
        arriving.append(exchange(sent, axes, by) if any(by) else sent)
    return arriving


def _offsets(axes: tuple[str, ...]) -> list[tuple[int, ...]]:
    """How many places further along each of `axes` every device is, this one first."""
    return list(itertools.product(*(range(lax.axis_size(axis)) for axis in axes)))


def _device(axes: tuple[str, ...], by: tuple[int, ...], sign: int) -> Index:
    """The number of the device `by` places further along `axes`, or, with sign -1, before."""
    number: Index = 0
    for axis, places in zip(axes, by, strict=True):
        n = lax.axis_size(axis)
        number = number * n + (lax.axis_index(axis) + sign * places) % n
    return number
