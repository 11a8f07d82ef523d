"""A weight-stationary feedforward in two parts of its hidden dimension, whose collectives over x run
beside each other's matmuls.

Each part is a feedforward of its own, of fewer columns, and the results add up: while the chip waits
for the one's hidden activations it multiplies for the other. Only the ends, over y and z, are left to
wait for. The collectives are lax's own, which the compiler has to run beside matmuls.

The layout is section 3.2.2 of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from collective_einsum.chips import MATRIX_TILE
from collective_einsum.rings import pieces_of, put_together, together

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import Axes
from ..tuning import D_FF_FRACTIONS

# In a profile.
SCOPE = "feedforward_in_parts"

# Makes hidden activations of what the input matrices made, and of where their columns begin.
Between = Callable[[Sequence[jax.Array], int], jax.Array]


@jax.named_scope(SCOPE)
def in_parts(
    c: jax.Array, w_in: Sequence[jax.Array], w_out: jax.Array, between: Between, x: Axes, yz: Axes
) -> jax.Array:
    """The feedforward of rows, on local shards inside shard_map.

    Args:
      c: [rows over yz, E over x].
      w_in: the input matrices, each [E over x, F over yz].
      w_out: [F over yz, E over x].
      between: takes some columns of what each input matrix made, [rows over x, columns], and the
        first of these columns; returns as many of the hidden activations.
      x, yz: axes of a layout, or of the mesh.

    Returns:
      [rows over yz, E over x].
    """
    first, second = pieces_of(w_out.shape[0], D_FF_FRACTIONS, MATRIX_TILE)
    left, right = pieces_of(w_out.shape[1], 2, MATRIX_TILE)

    def scattered(h: jax.Array, weights: Sequence[jax.Array], part: tuple[int, int]) -> Any:
        columns = [_cut(w, (0, w.shape[0]), part) for w in weights]
        return ax.einsum_reduce_scatter("me,ef->mf", h, columns, x, "m", "async")

    def gathered(rows: jax.Array, axes: Axes) -> jax.Array:
        return ax.all_gather(rows, axes, 0, "async")

    def out(a: jax.Array, part: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
        return ax.local_einsum("mf,fe->me", a, _cut(w_out, part, columns))

    h = gathered(c, yz)
    a = between(scattered(h, w_in, first), first[0])
    columns = scattered(h, w_in[:-1], second)
    # Gathered beside the last matmul of the second part.
    h, a = together(h, a)
    a = gathered(a, x)
    columns += scattered(h, w_in[-1:], second)
    b = between(columns, second[0])
    ys = [out(a, first, left)]
    # Scattered beside this half of a matmul, and gathered beside the other.
    a, b = together(a, b)
    b = gathered(b, x)
    ys.append(out(a, first, right))
    # Not an addition after its own matmul, which would be a pass: the next matmul adds to it.
    b, y = together(b, put_together(ys, 1))
    y = (out(b, second, (0, w_out.shape[1])) + y).astype(c.dtype)
    return ax.reduce_scatter_alone(y, yz, 0, "blocking")


def _cut(w: jax.Array, rows: tuple[int, int], columns: tuple[int, int]) -> jax.Array:
    """A block of a matrix, rows and columns as (start, length).

    The compiler is not told where it begins: of a block that it knows, it makes a copy before the
    matmul, where several read one matrix.
    """
    starts = lax.optimization_barrier((jnp.int32(rows[0]), jnp.int32(columns[0])))
    return lax.dynamic_slice(w, starts, (rows[1], columns[1]))
