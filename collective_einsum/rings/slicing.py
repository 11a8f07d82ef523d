"""Blocks of a dimension that is sharded over several mesh axes: taking and putting them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def split(x: Any, dim: int, sizes: tuple[int, ...]) -> Any:
    """`x` with dimension `dim` split into dimensions of `sizes`."""
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def merge(x: Any, dim: int, count: int) -> Any:
    """`x` with `count` dimensions from `dim` on merged into one."""
    size = math.prod(x.shape[dim : dim + count])
    return x.reshape(*x.shape[:dim], size, *x.shape[dim + count :])


def cut(x: Any, dim: int, lo: int, size: int) -> Any:
    """A static piece of a dimension; `x` itself if that is all of it."""
    return x if size == x.shape[dim] else lax.slice_in_dim(x, lo, lo + size, axis=dim)


def take(x: Any, dim: int, sizes: tuple[int, ...], at: int, index: Any, lo: int, size: int) -> Any:
    """The block at `index` along one axis of a dimension sharded as `sizes`, cut to a piece.

    The dimension is made of `sizes` blocks (major first) of shards. The result keeps the blocks of
    all axes but number `at`, merged, and `lo : lo + size` of each shard.
    """
    shard = x.shape[dim] // math.prod(sizes)
    inner = math.prod(sizes[at + 1 :])
    if math.prod(sizes[:at]) == 1 and (inner == 1 or size == shard):
        # Contiguous: one slice, which fuses into the dot that reads it.
        if x.dtype.itemsize == 1 and size == shard and dim != x.ndim - 1:
            # A slice of rows of bytes would change the tiling of all of x.
            x = split(x, dim, (sizes[at], inner * shard))
            return lax.dynamic_index_in_dim(x, index, axis=dim, keepdims=False)
        start = index * (inner * shard) + lo
        return lax.dynamic_slice_in_dim(x, start, inner * size, axis=dim)
    x = split(x, dim, (*sizes, shard))
    x = lax.dynamic_index_in_dim(x, index, axis=dim + at, keepdims=False)
    x = cut(x, dim + len(sizes) - 1, lo, size)
    return merge(x, dim, len(sizes))


def put(
    x: Any,
    block: Any,
    dim: int,
    sizes: tuple[int, ...],
    at: int,
    index: Any,
    lo: int,
    size: int,
    also: tuple[int, int] | None = None,
) -> Any:
    """`x` with the piece that `take` would cut out replaced by `block`.

    `also` is a (dimension, start) at which the block begins where it is smaller than `x`.
    """
    shard = x.shape[dim] // math.prod(sizes)
    inner = math.prod(sizes[at + 1 :])
    starts: list[Any] = [0] * x.ndim
    if also is not None:
        starts[also[0]] = also[1]
    if math.prod(sizes[:at]) == 1 and (inner == 1 or size == shard):
        starts[dim] = index * (inner * shard) + lo
        return _update(x, block, starts)
    others = (*sizes[:at], *sizes[at + 1 :], size)
    block = jnp.expand_dims(split(block, dim, others), dim + at)
    x = split(x, dim, (*sizes, shard))
    starts[dim : dim + 1] = [0] * (len(sizes) + 1)
    starts[dim + at], starts[dim + len(sizes)] = index, lo
    return merge(_update(x, block, starts), dim, len(sizes) + 1)


def _update(x: Any, block: Any, starts: list[Any]) -> Any:
    return lax.dynamic_update_slice(x, block, [jnp.asarray(s, jnp.int32) for s in starts])


def room(like: Any, dim: int, size: int) -> Any:
    """Room for pieces like this one, `size` long along a dimension; it holds anything yet."""
    shape = (*like.shape[:dim], size, *like.shape[dim + 1 :])
    return lax.empty(shape, like.dtype, out_sharding=jax.typeof(like).sharding)


def put_together(pieces: Sequence[Any], dim: int) -> Any:
    """The pieces along a dimension. Not concatenated, which is a pass: what makes a piece writes it
    where it belongs."""
    whole, lo = room(pieces[0], dim, sum(piece.shape[dim] for piece in pieces)), 0
    for piece in pieces:
        whole = lax.dynamic_update_slice_in_dim(whole, piece, lo, dim)
        lo += piece.shape[dim]
    return whole


def cut_shards(x: Any, dim: int, shard: int, lo: int, size: int) -> Any:
    """`lo : lo + size` of each shard of a dimension made of whole shards."""
    if size == shard:
        return x
    x = split(x, dim, (x.shape[dim] // shard, shard))
    return merge(cut(x, dim + 1, lo, size), dim, 2)


def join_shards(pieces: list[Any], dim: int, sizes: list[int]) -> Any:
    """The inverse of `cut_shards` over all pieces of the shards, in order; `sizes` are theirs."""
    if len(pieces) == 1:
        return pieces[0]
    split_up = [split(p, dim, (p.shape[dim] // n, n)) for p, n in zip(pieces, sizes, strict=True)]
    return merge(jnp.concatenate(split_up, axis=dim + 1), dim, 2)


def pieces_of(size: int, shares: int | Sequence[int], tile: int = 1) -> list[tuple[int, int]]:
    """`size` cut into nearly equal pieces, or pieces of these proportions, as (start, length);
    between tiles, if there are enough of them."""
    shares = (1,) * shares if isinstance(shares, int) else shares
    whole = size // tile
    if whole < sum(shares):
        tile, whole = 1, size
    ends = itertools.accumulate(shares)
    edges = [0, *(-(-whole * end // sum(shares)) * tile for end in ends)]
    edges[-1] = size
    return [(lo, hi - lo) for lo, hi in itertools.pairwise(edges)]
