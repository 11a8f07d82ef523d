"""The tokens that top-k and top-p leave, where the vocabulary is sharded.

No logits are sorted or gathered: a search determines a threshold a few bits at a time, by counting the
tokens above each candidate. Counts are integers, of probabilities too (in fixed point), whose sums are
the same in any order and so under any sharding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from ..models.functions import LOG2_E

# A number, or one for each sequence.
Setting = ArrayLike | Sequence[float]

Limbs = tuple[jax.Array, ...]

# Bits of a threshold that one round settles: 2**2 - 1 counts and one all-reduce. Compiled for TPU v4
# with 4002 tokens and 512 rows a chip, 3 counts take 32k cycles (one memory pass over the logits takes
# 21k) and 15 take 143k: more bits a round cost more in counts than they save in all-reduces.
_ROUND_BITS = 2
# Probabilities are counted in units of 2**-30 of the largest, in three limbs of 10 bits: a 32-bit
# sum of one limb holds 2**22 tokens.
_MASS_BITS, _LIMB_BITS = 30, 10
INT32_MAX = 2**31 - 1
LARGEST_VOCAB = 2 ** (32 - _LIMB_BITS)


def likeliest(
    logits: jax.Array,
    scaled: jax.Array,
    ids: jax.Array,
    *,
    top_k: Setting | None,
    top_p: Setting | None,
    axes: tuple[str, ...],
    vocab: int,
) -> jax.Array:
    """The tokens that top-k and then top-p leave; among equally likely ones, lower tokens first.

    Args:
      logits: [batch, tokens] float32 without -0.0, of this device's tokens; they give the order.
      scaled: (logits - maximum of the row) / temperature; their exponentials are proportional to the
        probabilities.
      ids: [tokens] int32, the indices of the tokens in the vocabulary.
      top_k: how many tokens to leave: a number or [batch], or None for all; below 1, or NaN, 1.
      top_p: the fraction of the probability left by top_k that the tokens left reach together: a number
        or [batch], or None; 0, negative or NaN leaves the likeliest token alone.
      axes: mesh axes that shard the vocabulary.
      vocab: tokens on all devices.

    Returns:
      [batch, tokens] booleans.
    """
    kept = jnp.ones(logits.shape, bool)
    ranks = _sortable(logits)
    if top_k is not None:
        k = _count(top_k, vocab)
        one = jnp.ones(logits.shape, jnp.uint32)
        kept = _top(ranks, ids, (one,), lambda limbs: limbs[0] >= k, axes, vocab)
    if top_p is not None:
        p = column(top_p, jnp.float32)
        limbs = _mass(jnp.where(kept, scaled, -jnp.inf))
        total = _total(tuple(_reduce(limb, axes) for limb in limbs))
        # At least one unit, which the likeliest token has: so that one token is left.
        least = jnp.where(p > 0, jnp.maximum(p * total, 1), 1)
        enough = _top(ranks, ids, limbs, lambda limbs: _total(limbs) >= least, axes, vocab)
        # p >= 1 leaves every token, also those whose probability rounds to no unit.
        kept = kept & (enough | (p >= 1))
    return kept


def column(setting: Setting, dtype: DTypeLike) -> jax.Array:
    """A setting, a number or [batch], as [1, 1] or [batch, 1]."""
    return jnp.reshape(jnp.asarray(setting).astype(dtype), (-1, 1))


def _count(setting: Setting, vocab: int) -> jax.Array:
    """A number of tokens between 1 and `vocab`, as a `column` of uint32."""
    k = setting if isinstance(setting, jax.Array) else jnp.asarray(np.minimum(setting, INT32_MAX))
    if k.dtype.itemsize < 4:
        k = k.astype(jnp.int32 if jnp.issubdtype(k.dtype, jnp.integer) else jnp.float32)
    # Compared in its own dtype, since the last 32 bits of a wider integer may be 0.
    inside = jnp.where(k >= 1, jnp.minimum(k, jnp.asarray(vocab, k.dtype)), 1)
    return jnp.minimum(column(inside, jnp.uint32), jnp.uint32(vocab))


def _sortable(x: jax.Array) -> jax.Array:
    """float32 as uint32 in the same order."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    sign = jnp.uint32(2**31)
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _mass(scaled: jax.Array) -> Limbs:
    """Probabilities over that of the likeliest token, as limbs, each [batch, tokens] uint32."""
    fixed = (jnp.exp2(scaled * LOG2_E) * 2.0**_MASS_BITS).astype(jnp.uint32)
    limb = jnp.uint32(2**_LIMB_BITS - 1)
    return fixed >> (2 * _LIMB_BITS), (fixed >> _LIMB_BITS) & limb, fixed & limb


def _total(limbs: Limbs) -> jax.Array:
    """Sums of limbs as one float32, monotonic in each limb, rounding included."""
    high, middle, low = (limb.astype(jnp.float32) for limb in limbs)
    return (high * 2.0**_LIMB_BITS + middle) * 2.0**_LIMB_BITS + low


# 32 bits even where the user has enabled 64.
_sum = functools.partial(jnp.sum, dtype=jnp.uint32)


def _reduce(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    total = _sum(x, axis=1, keepdims=True)
    return lax.psum(total, axes) if axes else total


def _top(
    ranks: jax.Array,
    ids: jax.Array,
    limbs: Limbs,
    enough: Callable[[Limbs], jax.Array],
    axes: tuple[str, ...],
    vocab: int,
) -> jax.Array:
    """The fewest tokens of highest rank, lower ids first, whose sums of limbs are `enough`."""
    rank = _threshold(ranks, limbs, enough, axes, bits=32)
    above = ranks > rank
    settled = tuple(_reduce(jnp.where(above, limb, 0), axes) for limb in limbs)
    # Among the tokens at the threshold itself, as many as are still needed.
    tied = tuple(jnp.where(ranks == rank, limb, 0) for limb in limbs)
    order = jnp.broadcast_to(jnp.uint32(vocab - 1) - ids.astype(jnp.uint32), ranks.shape)
    last = _threshold(
        order,
        tied,
        lambda sums: enough(tuple(a + b for a, b in zip(settled, sums, strict=True))),
        axes,
        bits=max(1, (vocab - 1).bit_length()),
    )
    return above | ((ranks == rank) & (order >= last))


def _threshold(
    order: jax.Array,
    limbs: Limbs,
    enough: Callable[[Limbs], jax.Array],
    axes: tuple[str, ...],
    bits: int,
) -> jax.Array:
    """The largest t for which the limbs of the tokens with order >= t sum to `enough`: [batch, 1].

    Args:
      order: [batch, tokens] uint32 below 2**bits.
      limbs: each [batch, tokens] uint32.
      enough: a predicate of their sums, each [batch, candidates]; true for all tokens together.
      axes: that shard the tokens.
      bits: of `order`.
    """
    rounds = -(-bits // _ROUND_BITS)

    def settle(i: jax.Array | int, settled: jax.Array) -> jax.Array:
        shift = jnp.asarray((rounds - 1 - i) * _ROUND_BITS, jnp.uint32)
        candidates = settled + (jnp.arange(1, 2**_ROUND_BITS, dtype=jnp.uint32) << shift)

        def sums(candidate: jax.Array) -> Limbs:
            reached = order >= candidate[:, None]
            return tuple(_sum(jnp.where(reached, limb, 0), axis=1) for limb in limbs)

        counted = jax.vmap(sums, in_axes=1, out_axes=1)(candidates)
        if axes:
            counted = lax.psum(counted, axes)
        return settled + (_sum(enough(counted), axis=1, keepdims=True) << shift)

    # The first round is outside of the loop: its result is varying over the mesh axes that shard the
    # batch, as the loop's carry must be from the start.
    first = settle(0, jnp.zeros((order.shape[0], 1), jnp.uint32))
    return lax.fori_loop(1, rounds, settle, first)
