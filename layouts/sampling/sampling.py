"""Drawing the next token from logits whose vocabulary is sharded, without gathering them.

A draw is the token with the largest logit / temperature + Gumbel noise (the Gumbel-max trick, which
samples the softmax), so that devices communicate one maximum only. The noise is a function of (seed,
position, token): a sequence's draw depends neither on the rest of the batch nor on the sharding.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from collective_einsum.text import brief

from ..arguments import values_of
from .top_k_top_p import INT32_MAX, LARGEST_VOCAB, Setting, column, likeliest

# The smallest normal number of float32. Its inverse is the largest temperature: a compiler may multiply
# by the inverse of a temperature, which must not be subnormal.
_TINY = 2.0**-126
_NUMBER = (bool, int, float, np.generic)
AxisNames = str | tuple[str, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_k", "top_p"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Sampling:
    """The settings by which a token is drawn; `Sampling()` is greedy.

    Each setting is a number, or an array [batch] with one number per sequence. A setting that is None
    costs nothing; another number does not recompile.

    Attributes:
      temperature: divides the logits. 0 or None takes the most likely token, and so does a number that
        is subnormal in float32.
      top_k: leaves exactly the k most likely tokens, or all if the vocabulary has no more.
      top_p: leaves the fewest most likely tokens whose probabilities, after temperature and top_k, sum
        to p; at least one.

    Traced numbers cannot be refused: a temperature that is negative or NaN counts as 0, one above 2**126
    as 2**126; top_k below 1, or NaN, as 1; top_p above 1 as 1; top_p that is negative or NaN leaves the
    most likely token.

    Raises:
      ValueError: temperature is negative or not finite, top_k is no integer or below 1, top_p is not in
        (0, 1], or top_k or top_p is given without a temperature.
    """

    temperature: Setting | None = None
    top_k: Setting | None = None
    top_p: Setting | None = None

    def __post_init__(self) -> None:
        for field, rule, holds in (
            ("temperature", "finite and not negative", lambda t: (t >= 0) & (t < math.inf)),
            ("top_k", "an integer of at least 1", lambda k: (k >= 1) & (k == np.floor(k))),
            ("top_p", "in (0, 1]", lambda p: (p > 0) & (p <= 1)),
        ):
            given = getattr(self, field)
            value = np.asarray(given) if _is_numbers(given) else given
            if field == "top_k" and isinstance(value, int):
                value = value if isinstance(value, bool) else min(value, INT32_MAX)
            # A transformation may put anything into the fields of a pytree.
            if not isinstance(value, bool | int | float | np.ndarray | np.generic | jax.Array):
                continue
            seen = values_of(value)
            if seen is None:
                continue
            if seen.dtype.kind not in "iuf" and not jnp.issubdtype(seen.dtype, jnp.floating):
                raise ValueError(f"Sampling: {field}={given} must be {rule}, not {seen.dtype}")
            if not np.all(holds(seen.astype(np.float64))):
                raise ValueError(f"Sampling: {field}={given} must be {rule}")
            if field == "top_k" and np.any(seen > INT32_MAX):
                # jit would take the last 32 bits.
                value = np.minimum(seen, INT32_MAX).astype(np.int32)
            if value is not given:
                object.__setattr__(self, field, value)
        if self.temperature is None and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                f"Sampling: top_k={self.top_k} and top_p={self.top_p} do nothing to a greedy "
                "choice; give a temperature, such as 1.0"
            )

    def __repr__(self) -> str:
        return brief(self)


def as_sampling(sampling: object) -> Sampling:
    """A `Sampling` as it is given; the greedy one for None.

    Raises:
      ValueError: `sampling` is something else.
    """
    if sampling is None or sampling is Sampling:
        return Sampling()
    if isinstance(sampling, Sampling):
        return sampling
    raise ValueError(
        f"sampling={sampling!r} must be a layouts.Sampling, such as "
        "layouts.Sampling(temperature=0.7, top_p=0.9)"
    )


def sample(
    logits: jax.Array,
    sampling: Sampling,
    *,
    seeds: jax.Array | np.ndarray,
    positions: jax.Array | np.ndarray,
    axes: AxisNames = (),
) -> jax.Array:
    """Draws one token for each sequence.

    Args:
      logits: [batch, vocab], natural logarithms of probabilities up to a constant of each row, of
        any floating dtype, read as float32 without subnormal numbers; with `axes`, inside a shard_map,
        [batch, vocab over `axes`]. -inf or NaN rules a token out, and inf rules out all tokens whose
        logit is not inf; where all are ruled out, all are equally likely.
      sampling: the settings.
      seeds: [batch] integers, one seed per sequence, of which the last 64 bits count; or their
        `seed_words`.
      positions: [batch] integers, the position of the drawn token in its sequence; each has noise of its
        own.
      axes: mesh axes that shard the vocabulary; () for none.

    Returns:
      [batch] int32, the same on every device along `axes`; the lowest of equally likely tokens.

    Raises:
      ValueError: shapes do not fit each other, or a vocabulary of more than 2**22 tokens is to be
        sampled.
    """
    axes = (axes,) if isinstance(axes, str) else tuple(axes)
    devices = math.prod(lax.axis_size(axis) for axis in axes)
    _check(logits, sampling, seeds, positions, devices)
    local = logits.shape[1]
    first = lax.axis_index(axes) * local if axes else 0
    ids = first + jnp.arange(local, dtype=jnp.int32)
    logits = _ordered(logits)
    if sampling.temperature is None:
        return _argmax(logits, ids, axes)
    temperature = column(sampling.temperature, jnp.float32)
    warm = temperature >= _TINY
    temperature = jnp.where(warm, jnp.minimum(temperature, 1 / _TINY), 1)
    top = jnp.max(logits, axis=1, keepdims=True)
    top = lax.pmax(top, axes) if axes else top
    # In a row with inf, the tokens that have it are left, equally likely.
    infinite = jnp.isinf(top)
    logits = jnp.where(infinite, jnp.where(logits == top, 0, -jnp.inf), logits)
    top = jnp.where(infinite, 0, top)
    # The largest logit is subtracted first, so that a tiny temperature makes no two tokens infinite; in
    # halves, since the difference of two float32 numbers may be infinite.
    scaled = (logits * 0.5 - top * 0.5) / temperature * 2
    kept = likeliest(
        logits,
        scaled,
        ids,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        axes=axes,
        vocab=local * devices,
    )
    noisy = jnp.where(warm, scaled + gumbel(seeds, positions, ids), logits)
    return _argmax(jnp.where(kept, noisy, -jnp.inf), ids, axes)


def seed_words(seeds: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """The last 64 bits of each seed [batch] as [batch, 2] uint32, the high word first.

    Integers of any dtype count in two's complement: an int32 is the same seed as an int64. Seeds that
    are not traced are read by numpy, before jax truncates them to 32 bits.
    """
    seen = values_of(seeds)
    if seen is None:
        if seeds.dtype.itemsize == 8:
            return jnp.stack([(seeds >> shift).astype(jnp.uint32) for shift in (32, 0)], axis=-1)
        high = jnp.where(seeds < 0, jnp.uint32(2**32 - 1), jnp.uint32(0))
        return jnp.stack([high, seeds.astype(jnp.uint32)], axis=-1)
    wide = seen.astype(np.uint64)
    return np.stack([wide >> np.uint64(32), wide & np.uint64(2**32 - 1)], -1).astype(np.uint32)


def check_sampling(sampling: Sampling, batch: int) -> None:
    """Refuses settings that are neither a number nor an array [batch].

    Raises:
      ValueError: a setting is something else.
    """
    for field in dataclasses.fields(sampling):
        setting = getattr(sampling, field.name)
        if setting is None:
            continue
        if not isinstance(setting, int | float | np.ndarray | np.generic | jax.Array):
            raise ValueError(
                f"sampling.{field.name}={setting!r} must be a number, or an array of one for each "
                f"of {batch} rows"
            )
        if jnp.shape(setting) not in ((), (batch,)):
            raise ValueError(
                f"sampling.{field.name} of shape {jnp.shape(setting)} must be one number, or one "
                f"for each of {batch} rows"
            )


def check_seeds(seeds: ArrayLike, batch: int) -> None:
    """Refuses seeds that are no integers [batch].

    Raises:
      ValueError: their dtype or shape is another one.
    """
    x = seeds if isinstance(seeds, jax.Array) else np.asarray(seeds)
    if x.shape != (batch,) or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(
            f"seeds of {x.dtype} and shape {x.shape} must be integers of 64 bits at most and of "
            f"shape ({batch},), one for each row, such as numpy.arange({batch})"
        )


def gumbel(
    seeds: jax.Array | np.ndarray, positions: jax.Array | np.ndarray, ids: jax.Array
) -> jax.Array:
    """Gumbel noise for every sequence and token: a hash of (seed, position, token).

    Args:
      seeds: [batch] integers, or their `seed_words` [batch, 2].
      positions: [batch] integers.
      ids: [tokens] integers.

    Returns:
      [batch, tokens] float32, independent standard Gumbel variables.
    """

    def row(words: jax.Array, position: jax.Array) -> jax.Array:
        # The generator is named, so that the user's jax_default_prng_impl changes no draw.
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        key = jax.random.fold_in(key, position)
        hashed = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
        return jax.random.key_data(hashed)[:, 0]

    words = jnp.asarray(seeds if seeds.ndim == 2 else seed_words(seeds))
    bits = jax.vmap(row)(words, jnp.asarray(positions).astype(jnp.uint32))
    # v is fine near 0, where the exponential variable -log(1 - v) is small and the noise is large.
    v = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    # The largest bits round to v = 1, whose noise would be -inf.
    v = jnp.minimum(v, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-v))


def _check(
    logits: jax.Array,
    sampling: Sampling,
    seeds: jax.Array | np.ndarray,
    positions: jax.Array | np.ndarray,
    devices: int,
) -> None:
    if logits.ndim != 2:
        raise ValueError(f"sample: logits of shape {logits.shape} must be [batch, vocab]")
    batch = logits.shape[0]
    if not (seeds.shape == (batch, 2) and seeds.dtype == jnp.uint32):
        check_seeds(seeds, batch)
    if positions.shape != (batch,) or not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(
            f"sample: positions of {positions.dtype} and shape {positions.shape} must be integers "
            f"of shape ({batch},), one for each row of the logits"
        )
    check_sampling(sampling, batch)
    if sampling.top_p is not None and logits.shape[1] * devices > LARGEST_VOCAB:
        raise ValueError(
            f"sample: top_p counts the probabilities of at most {LARGEST_VOCAB} tokens exactly, "
            f"and the vocabulary has {logits.shape[1] * devices}"
        )


def _ordered(logits: jax.Array) -> jax.Array:
    """Logits in float32 that numbers and bits order alike: NaN becomes -inf, and -0.0 and subnormal
    numbers, which are 0 on some devices, become 0."""
    x = logits.astype(jnp.float32)
    return jnp.where(jnp.isnan(x), -jnp.inf, jnp.where(jnp.abs(x) < _TINY, 0, x))


def _is_numbers(x: object) -> bool:
    """Whether x is a list or tuple of numbers."""
    return (type(x) is list or type(x) is tuple) and all(isinstance(item, _NUMBER) for item in x)


def _argmax(x: jax.Array, ids: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    top = jnp.max(x, axis=1)
    token = ids[jnp.argmax(x, axis=1)]
    if not axes:
        return token
    none = jnp.iinfo(jnp.int32).max
    return lax.pmin(jnp.where(top == lax.pmax(top, axes), token, none), axes)
