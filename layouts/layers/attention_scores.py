"""Attention of queries to keys and values that lie in several places, on one device.

The keys of a sequence stand in segments: a prefix shared by all sequences, what the cache holds, and
the chunk that is being read. One softmax runs over all of them without joining them, in base 2 and
float32. Queries are taken a block at a time, so that the scores of all heads never exist at once; where
they see a window, each block gets the keys of its windows only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from collective_einsum.chips import TILE_ROWS

from .. import tuning
from ..models.config import ModelConfig
from ..models.functions import LOG2_E, base2_scores, wide
from ..partitionings.mesh_fit import round_up
from ..partitionings.padded_sizes import length_tile, power_of_two, window_block, window_keys


@dataclasses.dataclass(frozen=True)
class Segment:
    """Some of the keys and values that queries may see; B batch, K heads, S positions.

    Attributes:
      keys, values: [B, K, S, D], or [K, S, D] if all sequences share them; integers with scales.
      key_scale, value_scale: [B, K, S] or [K, S]; None for 1.
      lengths: [B], how many of the S positions each sequence has, whatever stands behind them; None
        for all. Keys and values that all sequences share have the longest.
      causal: query t sees positions up to t.
      window: a query sees so many positions, its own and those before it; None for all.
      before: [B], how many positions the first key stands before the first new position; None where
        there is no window and no slope.
      rolls: of the positions from the first key on, p has its key in place p modulo S, and only the
        last S are there.
      start: of a causal segment, the position of the first key; None for 0.
    """

    keys: jax.Array
    values: jax.Array
    key_scale: jax.Array | None = None
    value_scale: jax.Array | None = None
    lengths: jax.Array | None = None
    causal: bool = False
    window: int | None = None
    before: jax.Array | None = None
    rolls: bool = False
    start: jax.Array | None = None

    @property
    def size(self) -> int:
        """S."""
        return self.keys.shape[-2]

    def present(self, x: jax.Array) -> jax.Array:
        """Keys, values or scales, zero behind the lengths: a probability of 0 times what stands there
        would be NaN if that is infinite or NaN, and so would be gradients."""
        if self.lengths is None or not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        dim = self.keys.ndim - 2
        ends = self.lengths if dim == 2 else jnp.max(self.lengths, keepdims=True)
        # Places of the full shape, not a mask [B, S]: H4 in docs/compiler.md.
        places = lax.broadcasted_iota(jnp.int32, x.shape, dim)
        return jnp.where(places < ends.reshape(-1, *(1,) * (x.ndim - 1)), x, jnp.zeros_like(x))

    def first(self, size: int) -> Segment:
        """The first `size` positions."""
        return self._cut(lambda x, dim: lax.slice_in_dim(x, 0, size, axis=dim))

    def near(self, place: jax.Array, size: int) -> Segment:
        """`size` positions of a causal segment, from the first on that a query at `place` sees; from an
        earlier one where fewer are left."""
        assert self.window is not None
        assert self.before is not None
        start = jnp.clip(place - (self.window - 1), 0, self.size - size)
        cut = self._cut(lambda x, dim: lax.dynamic_slice_in_dim(x, start, size, axis=dim))
        return dataclasses.replace(cut, start=start, before=self.before - start)

    def _cut(self, slice_: Callable[[jax.Array, int], jax.Array]) -> Segment:
        """The segment with a slice of every array along its positions."""

        def cut(x: jax.Array | None, dim: int) -> jax.Array | None:
            return None if x is None else slice_(x, x.ndim + dim)

        return dataclasses.replace(
            self,
            keys=cut(self.keys, -2),
            values=cut(self.values, -2),
            key_scale=cut(self.key_scale, -1),
            value_scale=cut(self.value_scale, -1),
        )


@dataclasses.dataclass(frozen=True)
class HeadTerms:
    """What each query head has for itself in its softmax; all of them in natural logarithms.

    Attributes:
      slopes: [H], what a key loses for each position that it stands before the query; None for 0.
      sinks: [H], logits in the denominator; None for none.
    """

    slopes: jax.Array | None = None
    sinks: jax.Array | None = None

    def of_rows(self, kv_heads: int, queries: int) -> HeadTerms:
        """The same in base 2, [1, K, N or 1, 1] for the rows of a key-value head; see `_block`."""

        def rows(x: jax.Array | None) -> jax.Array | None:
            if x is None:
                return None
            x = x.astype(wide(x.dtype)).reshape(kv_heads, -1) * LOG2_E
            return jnp.tile(x, (1, queries))[None, :, :, None]

        return HeadTerms(rows(self.slopes), rows(self.sinks))


def attend(
    q: jax.Array,
    segments: Sequence[Segment],
    config: ModelConfig,
    first: jax.Array | int = 0,
    terms: HeadTerms | None = None,
) -> jax.Array:
    """Softmax attention of each query to what it sees of all segments.

    Args:
      q: [B, T, H, D], not scaled. Heads h * H / K to (h + 1) * H / K - 1 read key-value head h.
      segments: where the keys are; each query must see at least one.
      config: the scale and the cap of scores.
      first: the place of the first query among the positions of causal segments, which may be more
        than there are queries.
      terms: of the H heads; None for none.

    Returns:
      [B, T, H, D] in the dtype of q.
    """
    b, t, h, d = q.shape
    k = segments[0].keys.shape[-3]
    q = q.reshape(b, t, k, h // k, d)
    near = [window_keys(s.window, s.size) if s.causal else s.size for s in segments]
    row_bytes = b * h * sum(near) * wide(q.dtype).itemsize
    count = -(-t // max(1, tuning.SCORES_BYTES // row_bytes))
    if near != [s.size for s in segments]:
        return _attend_near(q, segments, config, first, terms, near, count)
    if count == 1:
        return _block(q, segments, config, first, terms).reshape(b, t, h, d)
    # Powers of two, as lengths of prompts are: blocks of odd lengths are put together slowly.
    count = power_of_two(count)
    groups = min(count, tuning.CAUSAL_GROUPS)
    per_group = -(-count // groups)
    block = -(-t // (groups * per_group))
    block = round_up(block, length_tile(block, shared=False))
    padded = jnp.pad(q, ((0, 0), (0, groups * per_group * block - t), (0, 0), (0, 0), (0, 0)))
    results = []
    for group in range(groups):
        start = group * per_group * block
        end = start + per_group * block
        seen = [s.first(min(end + s.size - t, s.size)) if s.causal else s for s in segments]
        rows = padded[:, start:end].reshape(b, per_group, block, *q.shape[2:])

        def step(place: jax.Array, rows: jax.Array, seen: Sequence[Segment] = seen):
            return place + block, _block(rows, seen, config, place, terms)

        _, blocks = lax.scan(step, jnp.int32(start) + first, jnp.moveaxis(rows, 1, 0))
        results.append(jnp.moveaxis(blocks, 0, 1).reshape(b, per_group * block, h, d))
    return jnp.concatenate(results, axis=1)[:, :t]


def _attend_near(
    q: jax.Array,
    segments: Sequence[Segment],
    config: ModelConfig,
    first: jax.Array | int,
    terms: HeadTerms | None,
    near: Sequence[int],
    count: int,
) -> jax.Array:
    """`attend` where each block of queries gets the keys of its windows only: of each segment, as many
    as `near` says.

    Args:
      q: [B, T, K, G, D].
      segments, config, first, terms: as `attend`.
      near: of the causal segments, as many as `window_keys` of their window.
      count: of the blocks at least.

    Returns:
      As `attend`.
    """
    b, t, k, g, d = q.shape
    block = min(window_block(s.window) for s in segments if s.causal and s.window is not None)
    count = max(count, -(-t // block))
    block = -(-t // count)
    padded = jnp.pad(q, ((0, 0), (0, count * block - t), (0, 0), (0, 0), (0, 0)))
    rows = jnp.moveaxis(padded.reshape(b, count, block, k, g, d), 1, 0)

    def step(place: jax.Array, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        seen = [
            s if size == s.size else s.near(place, size)
            for s, size in zip(segments, near, strict=True)
        ]
        return place + block, _block(rows, seen, config, place, terms)

    _, blocks = lax.scan(step, jnp.int32(0) + first, rows)
    return jnp.moveaxis(blocks, 0, 1).reshape(b, count * block, k * g, d)[:, :t]


def _block(
    q: jax.Array,
    segments: Sequence[Segment],
    config: ModelConfig,
    first: jax.Array | int,
    terms: HeadTerms | None,
) -> jax.Array:
    """Attention of the queries [B, T, K, G, D] that begin at position `first` of their chunk.

    Those of a key-value head are the rows of a matrix, N = T * G of them.
    """
    b, t, k, g, d = q.shape
    rows = jnp.swapaxes(q, 1, 2).reshape(b, k, t * g, d)
    places = first + jnp.repeat(jnp.arange(t, dtype=jnp.int32), g, total_repeat_length=t * g)
    if t * g == 1:
        # H1 in docs/compiler.md: a dot of one row is a vector loop.
        rows = lax.optimization_barrier(jnp.broadcast_to(rows, (b, k, TILE_ROWS, d)))
    own = HeadTerms() if terms is None else terms.of_rows(k, t)
    scores = [_scores(rows, s, config, places, own.slopes) for s in segments]
    tops = [jnp.max(s, axis=-1, keepdims=True) for s in scores]
    top = tops[0]
    for other in tops[1:]:
        top = jnp.maximum(top, other)
    if own.sinks is not None:
        top = jnp.maximum(top, own.sinks)
    total: jax.Array | float = 0.0 if own.sinks is None else jnp.exp2(own.sinks - top)[..., 0]
    result: jax.Array | float = 0.0
    for s, segment in zip(scores, segments, strict=True):
        powers = jnp.exp2(s - top)
        total = total + jnp.sum(powers, axis=-1)
        if segment.value_scale is not None:
            powers = powers * segment.present(segment.value_scale)[..., None, :]
        labels = "bksd" if segment.values.ndim == 4 else "ksd"
        result = result + jnp.einsum(
            f"bkns,{labels}->bknd",
            powers.astype(q.dtype),
            segment.present(segment.values).astype(q.dtype),
            preferred_element_type=s.dtype,
        )
    # Otherwise the TPU compiler divides and rounds after what reshapes this, in more memory passes.
    rows = lax.optimization_barrier((result / jnp.expand_dims(total, -1)).astype(q.dtype))[
        :, :, : t * g
    ]
    return jnp.swapaxes(rows.reshape(b, k, t, g, d), 1, 2)


def _scores(
    q: jax.Array,
    segment: Segment,
    config: ModelConfig,
    places: jax.Array,
    slopes: jax.Array | None,
) -> jax.Array:
    """Base-2 scores [B, K, N, S] of queries [B, K, N, D] that stand at `places` [N] of their chunk;
    -inf where a query does not see a key. `slopes` are in base 2, [1, K, N or 1, 1]."""
    labels = "bksd" if segment.keys.ndim == 4 else "ksd"
    scores = jnp.einsum(
        f"bknd,{labels}->bkns",
        q,
        segment.present(segment.keys).astype(q.dtype),
        preferred_element_type=wide(q.dtype),
    )
    key_scale = segment.key_scale
    if key_scale is not None:
        key_scale = segment.present(key_scale)[..., None, :]
    scores = base2_scores(scores, config, key_scale)
    if slopes is not None:
        assert segment.before is not None
        own = (segment.before[:, None] + places)[:, None, :, None]
        distance = own - _key_positions(segment, scores)
        scores = scores - slopes.astype(scores.dtype) * distance.astype(scores.dtype)
    if segment.causal:
        positions = jnp.arange(segment.size, dtype=jnp.int32)
        if segment.start is not None:
            positions = positions + segment.start
        scores = jnp.where(positions <= places[:, None], scores, -jnp.inf)
    if segment.window is not None:
        assert segment.before is not None
        oldest = segment.before[:, None] + places - (segment.window - 1)
        keys = _key_positions(segment, scores)
        scores = jnp.where(keys >= oldest[:, None, :, None], scores, -jnp.inf)
    if segment.lengths is not None:
        # The full shape, as in `present`.
        places = lax.broadcasted_iota(jnp.int32, scores.shape, 3)
        scores = jnp.where(places < segment.lengths[:, None, None, None], scores, -jnp.inf)
    return scores


def _key_positions(segment: Segment, scores: jax.Array) -> jax.Array:
    """The position of each key after the segment's first, in the shape of scores [B, K, N, S]."""
    places = lax.broadcasted_iota(jnp.int32, scores.shape, 3)
    if not segment.rolls:
        return places
    # The newest of the positions, which have been written one after the other and round again.
    assert segment.before is not None
    size = scores.shape[3]
    newest = (segment.before - 1) % size
    newest, base = (x[:, None, None, None] for x in (newest, segment.before - 1 - newest))
    return places + base - jnp.where(places > newest, np.int32(size), np.int32(0))
