"""A weight-stationary feedforward split into two fractions of d_ff, whose collectives over x overlap
each other's matmuls.

Each fraction is a feedforward of its own, and the results add up: while the hidden activations of one
fraction travel, the chip multiplies for the other. Only the collectives over y and z, before and after,
are waited for. All are lax's own, which the compiler makes asynchronous.

The layout is that of section 3.2.2 of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102),
token-sharded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from collective_einsum.chips import MATRIX_TILE
from collective_einsum.rings import chunk_spans, put_together, together

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import Axes
from ..tuning import D_FF_FRACTIONS

# The scope's name in a profile.
SCOPE = "split_feedforward"

# From the products with each input matrix, [tokens over x, features], and the index of the first of
# these features, to hidden activations of the same shape.
Between = Callable[[Sequence[jax.Array], int], jax.Array]
# The start and the length of a slice.
Slice = tuple[int, int]


@jax.named_scope(SCOPE)
def split_feedforward(
    c: jax.Array, w_in: Sequence[jax.Array], w_out: jax.Array, between: Between, x: Axes, yz: Axes
) -> jax.Array:
    """The token-sharded feedforward on local shards, inside shard_map.

    Args:
      c: [tokens over yz, E over x].
      w_in: the input matrices, each [E over x, F over yz].
      w_out: [F over yz, E over x].
      between: what stands between the matrices.
      x, yz: axes of a layout, or of the mesh.

    Returns:
      [tokens over yz, E over x].
    """
    first, second = chunk_spans(w_out.shape[0], D_FF_FRACTIONS, MATRIX_TILE)
    left, right = chunk_spans(w_out.shape[1], 2, MATRIX_TILE)

    def scattered(h: jax.Array, weights: Sequence[jax.Array], fraction: Slice) -> list[jax.Array]:
        slices = [_slice(w, (0, w.shape[0]), fraction) for w in weights]
        return ax.einsum_reduce_scatter("me,ef->mf", h, slices, x, "m", "async")

    def gathered(tokens: jax.Array, axes: Axes) -> jax.Array:
        return ax.all_gather(tokens, axes, 0, "async")

    def out(a: jax.Array, fraction: Slice, features: Slice) -> jax.Array:
        return ax.local_einsum("mf,fe->me", a, _slice(w_out, fraction, features))

    h = gathered(c, yz)
    a = between(scattered(h, w_in, first), first[0])
    inner = scattered(h, w_in[:-1], second)
    # The all-gather of a overlaps the last input matmul of the second fraction.
    h, a = together(h, a)
    a = gathered(a, x)
    inner += scattered(h, w_in[-1:], second)
    b = between(inner, second[0])
    ys = [out(a, first, left)]
    # The reduce-scatter before b overlaps the left half of this matmul, and the all-gather of b the
    # right half.
    a, b = together(a, b)
    b = gathered(b, x)
    ys.append(out(a, first, right))
    # The next matmul adds to y; an addition behind the barrier would be a memory pass: H5 in
    # docs/compiler.md.
    b, y = together(b, put_together(ys, 1))
    y = (out(b, second, (0, w_out.shape[1])) + y).astype(c.dtype)
    return ax.reduce_scatter_alone(y, yz, 0, "blocking")


def _slice(w: jax.Array, rows: Slice, columns: Slice) -> jax.Array:
    """A slice of a matrix in both dimensions.

    Its start is hidden from the compiler, which copies a slice with a known start before the matmul,
    where several read one matrix.
    """
    # H3 in docs/compiler.md.
    starts = lax.optimization_barrier((jnp.int32(rows[0]), jnp.int32(columns[0])))
    return lax.dynamic_slice(w, starts, (rows[1], columns[1]))
