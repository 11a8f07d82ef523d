"""An all-reduce as steps: a reduce-scatter and an all-gather."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..ops.schedule import Direction
from .multi_axis import all_gather, reduce_scatter, stream_dim
from .permutes import total
from .steps import Steps


def all_reduce_steps(
    y: jax.Array,
    axes: tuple[str, ...],
    direction: Direction,
    *,
    wire: Callable[[jax.Array], jax.Array],
    accumulator: DTypeLike,
    rolls: Callable[[int], bool],
) -> Steps:
    """Sums `y` over `axes`, by way of a dimension that they divide, or of the flattened array.

    Args:
      y: the local summand.
      axes: the mesh axes.
      direction: of the rings.
      wire: converts a partial sum to what is sent.
      accumulator: the dtype in which partial sums are added.
      rolls: whether a ring of so many devices is one loop in the program.

    Returns:
      The sum, of the shape of `y`, in the dtype that `wire` makes.
    """
    if not y.size:
        return y
    shape, n = y.shape, total(axes)
    least = 2 * n if direction == "bidirectional" else n
    fits = [
        d
        for d in reversed(range(y.ndim))
        if shape[d] % n == 0 and shape[d] >= least and _has_streams(shape, d, axes)
    ]
    dim = fits[0] if fits else 1
    if not fits:
        # A row for each axis, so that every stream has a slice.
        y = jnp.pad(y.reshape(-1), (0, -y.size % (len(axes) * least))).reshape(len(axes), -1)
    y = yield from reduce_scatter(
        y, axes, dim, direction, wire=wire, accumulator=accumulator, rolls=rolls
    )
    y = yield from all_gather(wire(y), axes, dim, direction, rolls=rolls)
    return y if fits else y.reshape(-1)[: math.prod(shape)].reshape(shape)


def _has_streams(shape: tuple[int, ...], dim: int, axes: tuple[str, ...]) -> bool:
    """Whether the array can be sliced into a stream for each axis."""
    return len(axes) == 1 or stream_dim(shape, dim, len(axes)) is not None
