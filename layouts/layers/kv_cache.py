"""The KV cache: what it holds, how it is sharded, and how it grows in place.

Keys and values are stored [layers, batch, K, positions, D], so that a head's positions are the rows
of a matrix. Batch and positions are stored padded, see `padded_sizes`: padded sequences stay empty, and
padded positions lie behind the end of every sequence. A step attends to the cache as it was and to its
own new keys; the new entries are written afterwards, into the buffer of the donated cache. So a layer
with a window needs the window's positions and no more: position p lies in place p modulo their number.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from collective_einsum.chips import TILE_LANES

from .. import tuning
from ..models.cache import Cache, Entries, Pair, Prefix
from ..models.config import ModelConfig
from ..partitionings.cache_stores import Store, cache_stores
from ..partitionings.padded_sizes import padded_capacity

# Positions of a tile of int8 on a TPU, which are written together: H12 in docs/compiler.md.
INT8_TILE = 32

Index = jax.Array | int


def empty_cache(
    config: ModelConfig,
    batch: int,
    max_length: int,
    dtype: DTypeLike = jnp.bfloat16,
    *,
    int8: bool = False,
    prefix: Prefix | None = None,
    kv_heads: int | None = None,
    stored_batch: int | None = None,
    filled: int | None = None,
) -> Cache:
    """An empty cache of zeros; under jit with out_shardings, every device makes its own shard.

    Args:
      config: the model.
      batch: sequences.
      max_length: positions of one sequence, without the prefix.
      dtype: of keys and values.
      int8: whether keys and values are stored as int8, with one float32 scale per position and head.
      prefix: what all sequences begin with.
      kv_heads: key-value heads of a shard; all of the model's unless given.
      stored_batch: stored sequences, of a shard or with padding; `batch` unless given.
      filled: of the positions of one sequence, how many are ever used; there is room for no more.

    Raises:
      ValueError: a size is not positive, or the prefix is stored in another way.
    """
    if batch < 1 or max_length < 1:
        raise ValueError(
            f"a cache needs a batch and a max_length of at least 1, got {batch} and {max_length}"
        )
    heads = config.stored_kv_heads if kv_heads is None else kv_heads
    stored = batch if stored_batch is None else stored_batch
    most = padded_capacity(max_length if filled is None else filled)
    kind = jnp.dtype(jnp.int8 if int8 else dtype)
    if prefix is not None and prefix.k.values.dtype != kind:
        raise ValueError(
            f"the prefix is stored as {prefix.k.values.dtype} but the cache as {kind}; make both "
            "with the same dtype and int8"
        )

    def empty(store: Store) -> Entries:
        shape = (store.layers, stored, heads, min(most, store.positions), config.d_head)
        scale = jnp.ones(shape[:-1], jnp.float32) if int8 else None
        return Entries(jnp.zeros(shape, kind), scale)

    (k, v), *shorter = [(empty(store), empty(store)) for store in cache_stores(config, max_length)]
    lengths = jnp.zeros((batch,), jnp.int32)
    return Cache(k, v, lengths, prefix, max_length, tuple(shorter))


def with_stored_batch(cache: Cache, stored: int) -> Cache:
    """The cache, of global arrays, with `stored` sequences: padding is added or dropped."""
    if cache.stored_batch == stored:
        return cache
    return cache.with_stores(_sized(cache.stores, stored))


@functools.partial(jax.jit, static_argnums=1)
def _sized(stores: tuple[Pair, ...], stored: int) -> tuple[Pair, ...]:
    """Keys and values with a batch of `stored`."""

    def one(x: jax.Array) -> jax.Array:
        sharding = _explicit(x)
        if sharding is not None:
            # A dimension that is padded and sliced must not be sharded.
            spec = P(*(None if dim == 1 else axes for dim, axes in enumerate(sharding.spec)))
            x = jax.reshard(x, NamedSharding(sharding.mesh, spec))
        more = max(0, stored - x.shape[1])
        padded = jnp.pad(x, [(0, more if dim == 1 else 0) for dim in range(x.ndim)])
        return lax.slice_in_dim(padded, 0, stored, axis=1)

    return jax.tree.map(one, stores)


def stored_like(cache: Cache, given: Cache) -> Cache:
    """The cache with as many stored sequences as `given`, and with the sharding in its type, if any."""
    if cache.stored_batch == given.stored_batch:
        return cache

    def placed(x: jax.Array, like: jax.Array) -> jax.Array:
        sharding = _explicit(like)
        return x if sharding is None else jax.reshard(x, sharding)

    cache = with_stored_batch(cache, given.stored_batch)
    return cache.with_stores(jax.tree.map(placed, cache.stores, given.stores))


def _explicit(x: jax.Array) -> NamedSharding | None:
    """The sharding in the type of an array on a mesh with Explicit axes; else None."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def is_int8(past: Pair | None) -> bool:
    """Whether keys and values are stored as integers with scales."""
    return past is not None and past[0].scale is not None


def as_stored(buffer: jax.Array) -> jax.Array:
    """An array of the cache in the order of dimensions in which the TPU compiler stores arguments:
    without that, it may copy all of the cache into the order that it writes or reads fastest.

    That is the order of the array, but where positions fill the lanes of a tile and features do not:
    then positions come last.
    """
    # Not at the top: `import layouts` should bring little besides jax.
    from jax.experimental.layout import Layout, with_layout_constraint

    order = [*range(buffer.ndim)]
    positions, features = buffer.shape[-2:]
    if buffer.dtype != jnp.int8 and features % TILE_LANES and positions % TILE_LANES == 0:
        order[-2:] = reversed(order[-2:])
    return with_layout_constraint(buffer, Layout(tuple(order)))


def append(
    entries: Entries,
    new: Entries,
    starts: jax.Array,
    counts: jax.Array,
    layer: Index = 0,
    *,
    rolls: bool = False,
) -> Entries:
    """Writes consecutive positions of every sequence, in place where XLA may.

    Args:
      entries: [layers, B, K, S, D].
      new: [n, B, K, T, D], of n consecutive layers.
      starts: [B] int32, the position of each sequence's first new entry.
      counts: [B] int32, the number of its T entries to write; entries past S are not written.
      layer: the index of the first layer of `new` in `entries`.
      rolls: position p lies in place p modulo S, and of more than S entries the last S are written.
    """

    def write(buffer: jax.Array, rows: jax.Array, dim: int) -> jax.Array:
        # The smallest span that holds the T new positions wherever they start: T, or, where tiles are
        # written together, T + tile - 1 rounded up to tiles.
        size = buffer.shape[dim]
        t = min(size, rows.shape[dim])
        tile = INT8_TILE if buffer.dtype == jnp.int8 and size % INT8_TILE == 0 else 1
        span = min(size, -(-(t + tile - 1) // tile) * tile)

        def one(b: Index, buffer: jax.Array) -> jax.Array:
            start = lax.dynamic_index_in_dim(starts, b, keepdims=False)
            count = lax.dynamic_index_in_dim(counts, b, keepdims=False)
            if not rolls:
                return put(b, buffer, start, count)
            left_out = jnp.maximum(count - size, 0)
            start, count = (start + left_out) % size, count - left_out
            buffer = put(b, buffer, start, count, left_out)
            # Those past the end, which go on at the start.
            return buffer if t == 1 else put(b, buffer, start - size, count, left_out)

        def put(
            b: Index, buffer: jax.Array, start: jax.Array, count: jax.Array, left_out: Index = 0
        ) -> jax.Array:
            first = jnp.minimum(start // tile, (size - span) // tile)
            if rolls:
                first = jnp.maximum(first, 0)
            window = first * tile
            own = lax.dynamic_slice_in_dim(rows, b, 1, axis=1)
            if rows.shape[dim] > t:
                own = lax.dynamic_slice_in_dim(own, left_out, t, axis=dim)
            places: list[Index] = [layer, *[0] * (buffer.ndim - 1)]
            places[1], places[dim] = b, first
            at = _starts(places)
            shape = [span if d == dim else n for d, n in enumerate(own.shape)]
            cut = _tiled(shape, dim, tile)
            old = lax.dynamic_slice(buffer, at, cut).reshape(shape)
            place = window + jnp.arange(span, dtype=jnp.int32)
            fresh = (place >= start) & (place < start + count)
            fresh = fresh.reshape([-1 if d == dim else 1 for d in range(own.ndim)])
            if t > 1:
                more = [(0, span - t if d == dim else 0) for d in range(own.ndim)]
                own = jnp.roll(jnp.pad(own, more), start - window, axis=dim)
            return lax.dynamic_update_slice(buffer, jnp.where(fresh, own, old).reshape(cut), at)

        shape = buffer.shape
        buffer = as_stored(buffer)
        buffer = buffer.reshape(_tiled(shape, dim, tile))
        batch = shape[1]
        if batch > tuning.UNROLLED_WRITES:
            return lax.fori_loop(np.int32(0), np.int32(batch), one, buffer).reshape(shape)
        for b in range(batch):
            buffer = one(b, buffer)
        return buffer.reshape(shape)

    new = new if rolls else new.first(entries.size)
    scale = entries.scale
    if scale is not None:
        assert new.scale is not None
        scale = write(scale, new.scale, 3)
    return Entries(write(entries.values, new.values, 3), scale)


def fill(entries: Entries, new: Entries, layer: Index, counts: jax.Array | None = None) -> Entries:
    """Writes the first T positions of all sequences in one layer, in place where XLA may.

    Args:
      entries: [layers, B, K, S, D].
      new: [B, K, T, D]; positions past S are not written.
      layer: the index of the layer.
      counts: [B] int32, given where position p lies in place p modulo S: the number of a sequence's T
        entries that count, of which the last S are written.
    """
    new = jax.tree.map(lambda rows: rows[None], new)
    if counts is None or new.size <= entries.size:
        return begin(entries, new, layer)
    return append(entries, new, jnp.zeros_like(counts), counts, layer, rolls=True)


def begin(entries: Entries, new: Entries, layer: Index = 0) -> Entries:
    """Writes the first T positions of all sequences in several layers, in place where XLA may.

    Args:
      entries: [layers, B, K, S, D].
      new: [n, B, K, T, D], of n consecutive layers; positions past S are not written.
      layer: the index of the first of them.
    """

    def write(buffer: jax.Array, rows: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(buffer, rows, _starts([layer, *[0] * (rows.ndim - 1)]))

    return jax.tree.map(write, entries, new.first(entries.size))


def _starts(at: Sequence[Index]) -> list[Index | np.int32]:
    """Start indices in int32, even if jax_enable_x64 is set: lax wants one dtype for all of them."""
    return [np.int32(i) if isinstance(i, int) else i for i in at]


def _tiled(shape: Sequence[int], dim: int, tile: int) -> list[int]:
    """The shape with dimension `dim` split into [size / tile, tile]; as it is if `tile` is 1."""
    tiles = [shape[dim]] if tile == 1 else [shape[dim] // tile, tile]
    return [*shape[:dim], *tiles, *shape[dim + 1 :]]
