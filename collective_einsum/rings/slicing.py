"""Slices of dimensions, and of every shard of a dimension that lies over several mesh axes."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# An index that is known when the program is traced, or only when it runs.
Index = int | jax.Array


class Span(NamedTuple):
    """`start : start + size` of a dimension, or of each of its shards."""

    start: int
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardedDim:
    """A dimension of an array that holds the shards of all devices along some mesh axes.

    Attributes:
      dim: the dimension.
      sizes: of the axes; the shards lie in their order, the first one major.
      position: among the axes, the one along which blocks of shards are read and written.
    """

    dim: int
    sizes: tuple[int, ...]
    position: int

    @property
    def shards(self) -> int:
        """How many shards the dimension holds."""
        return math.prod(self.sizes)

    def _inner(self) -> int:
        """How many shards lie one after the other in a block."""
        return math.prod(self.sizes[self.position + 1 :])

    def _is_contiguous(self, span: Span, shard: int) -> bool:
        """Whether `span` of all the shards in a block, each `shard` long, is one slice."""
        outer = math.prod(self.sizes[: self.position])
        return outer == 1 and (self._inner() == 1 or span.size == shard)

    def read(self, x: jax.Array, index: Index, span: Span) -> jax.Array:
        """`span` of each shard whose device has `index` along the axis at `position`.

        Returns:
          Like `x`, but dimension `dim` holds `span.size` of each of these shards.
        """
        dim, shard, inner = self.dim, x.shape[self.dim] // self.shards, self._inner()
        if self._is_contiguous(span, shard):
            # One slice, which the compiler fuses into the dot that reads it.
            if x.dtype.itemsize == 1 and span.size == shard and dim != x.ndim - 1:
                # A slice of rows of bytes would change the tiling of all of x.
                x = split(x, dim, (self.sizes[self.position], inner * shard))
                return lax.dynamic_index_in_dim(x, index, axis=dim, keepdims=False)
            start = index * (inner * shard) + span.start
            return lax.dynamic_slice_in_dim(x, start, inner * span.size, axis=dim)
        x = split(x, dim, (*self.sizes, shard))
        x = lax.dynamic_index_in_dim(x, index, axis=dim + self.position, keepdims=False)
        x = slice_dim(x, dim + len(self.sizes) - 1, span)
        return merge(x, dim, len(self.sizes))

    def write(
        self,
        x: jax.Array,
        block: jax.Array,
        index: Index,
        span: Span,
        stream: tuple[int, int] | None = None,
    ) -> jax.Array:
        """`x` with what `read` gives replaced by `block`.

        Args:
          x: the array that is written to.
          block: its new elements.
          index: along the axis at `position`, of the device whose shards are written.
          span: of each shard.
          stream: where `block` is one stream's slice of another dimension of `x`: this dimension,
            and where the slice starts.
        """
        dim, position, shard = self.dim, self.position, x.shape[self.dim] // self.shards
        starts: list[Index] = [0] * x.ndim
        if stream is not None:
            starts[stream[0]] = stream[1]
        if self._is_contiguous(span, shard):
            starts[dim] = index * (self._inner() * shard) + span.start
            return _update(x, block, starts)
        others = (*self.sizes[:position], *self.sizes[position + 1 :], span.size)
        block = jnp.expand_dims(split(block, dim, others), dim + position)
        x = split(x, dim, (*self.sizes, shard))
        starts[dim : dim + 1] = [0] * (len(self.sizes) + 1)
        starts[dim + position], starts[dim + len(self.sizes)] = index, span.start
        return merge(_update(x, block, starts), dim, len(self.sizes) + 1)


def _update(x: jax.Array, block: jax.Array, starts: list[Index]) -> jax.Array:
    return lax.dynamic_update_slice(x, block, [jnp.asarray(s, jnp.int32) for s in starts])


def split(x: jax.Array, dim: int, sizes: tuple[int, ...]) -> jax.Array:
    """`x` with dimension `dim` split into dimensions of `sizes`."""
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def merge(x: jax.Array, dim: int, count: int) -> jax.Array:
    """`x` with `count` dimensions from `dim` on merged into one."""
    size = math.prod(x.shape[dim : dim + count])
    return x.reshape(*x.shape[:dim], size, *x.shape[dim + count :])


def slice_dim(x: jax.Array, dim: int, span: Span) -> jax.Array:
    """`span` of dimension `dim`; `x` itself if that is all of it."""
    if span.size == x.shape[dim]:
        return x
    return lax.slice_in_dim(x, span.start, span.start + span.size, axis=dim)


def slice_shards(x: jax.Array, dim: int, shard: int, span: Span) -> jax.Array:
    """`span` of each shard of dimension `dim`, which holds shards of length `shard`."""
    if span.size == shard:
        return x
    x = split(x, dim, (x.shape[dim] // shard, shard))
    return merge(slice_dim(x, dim + 1, span), dim, 2)


def join_shards(slices: Sequence[jax.Array], dim: int, sizes: Sequence[int]) -> jax.Array:
    """The inverse of `slice_shards` over all slices of a shard, in order, of length `sizes`."""
    if len(slices) == 1:
        return slices[0]
    by_shard = [split(x, dim, (x.shape[dim] // n, n)) for x, n in zip(slices, sizes, strict=True)]
    return merge(jnp.concatenate(by_shard, axis=dim + 1), dim, 2)


def uninitialized(like: jax.Array, dim: int, size: int) -> jax.Array:
    """An uninitialized array like `like`, but `size` long in dimension `dim`."""
    shape = (*like.shape[:dim], size, *like.shape[dim + 1 :])
    return lax.empty(shape, like.dtype, out_sharding=jax.typeof(like).sharding)


def put_together(slices: Sequence[jax.Array], dim: int) -> jax.Array:
    """The concatenation of `slices` along dimension `dim`, without a memory pass of its own: each is
    written to its place by the operation that computes it."""
    joined, start = uninitialized(slices[0], dim, sum(x.shape[dim] for x in slices)), 0
    for x in slices:
        joined = lax.dynamic_update_slice_in_dim(joined, x, start, dim)
        start += x.shape[dim]
    return joined


def chunk_spans(size: int, proportions: int | Sequence[int], tile: int = 1) -> list[Span]:
    """A dimension of length `size` split into chunks.

    Args:
      size: the length of the dimension.
      proportions: of the chunks, or the number of nearly equal ones.
      tile: chunks begin at multiples of it, if there are at least as many tiles as the proportions
        add up to.
    """
    proportions = (1,) * proportions if isinstance(proportions, int) else proportions
    total, tiles = sum(proportions), size // tile
    if tiles < total:
        tile, tiles = 1, size
    edges = [0, *(-(-tiles * end // total) * tile for end in itertools.accumulate(proportions))]
    edges[-1] = size
    return [Span(start, stop - start) for start, stop in itertools.pairwise(edges)]
