"""Drawing the next token from logits whose vocabulary is sharded, without gathering them.

A draw is the largest of logit / temperature + Gumbel noise (the Gumbel-max trick, which samples the
softmax), so that devices need to agree on one maximum only. The noise is a function of (seed,
position, token), so a sequence's draw depends neither on its neighbours in the batch nor on the
sharding.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from collective_einsum.text import brief

from ..arguments import values_of
from .top_k_top_p import INT32_MAX, LARGEST_VOCAB, column, likeliest

# The smallest normal number of float32. Its inverse is the largest temperature, by whose inverse a
# compiler may multiply.
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
    """How to choose a token; `Sampling()` is greedy.

    Each setting is a number, or an array [batch] with one for each sequence. A setting that is None
    costs nothing; changing a number compiles nothing anew.

    Attributes:
      temperature: divides the logits; 0, or None, takes the most likely token, and so does what
        float32 has only as a subnormal number.
      top_k: only the k most likely tokens, exactly k of them; all, if the vocabulary has no more.
      top_p: only the fewest most likely tokens that have probability p together, after temperature
        and top_k; at least one.

    Numbers that cannot be seen, under a transformation, cannot be refused either: a temperature that
    is negative or NaN is 0, and one above 2**126 is that; top_k below 1, or NaN, is 1;
    top_p above 1 is 1, and one that is negative or NaN leaves the likeliest token.

    Raises:
      ValueError: a number given is negative, not a number, top_k not an integer or below 1, top_p
        not in (0, 1], or top_k or top_p given without a temperature.
    """

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None

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
            # Under a transformation, the fields are whatever it puts there.
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
                # jit would take 32 bits of it.
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


def as_sampling(sampling: Any) -> Sampling:
    """How to choose a token: greedily for None.

    Raises:
      ValueError: it is something else.
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
        any floating dtype, read as float32 without subnormal numbers; with `axes`, this device's
        shard of the vocabulary, in the order of the axes, inside a shard_map. -inf or NaN rules a
        token out, and inf all tokens but those that have it; where all are ruled out, all are
        equally likely.
      sampling: how.
      seeds: [batch] integers, of which the last 64 bits count: the sequence's own seed; or what
        `seed_words` makes of them.
      positions: [batch] integers: the place in its sequence of the token drawn, so that each place
        has noise of its own.
      axes: mesh axes that shard the vocabulary; () for whole rows.

    Returns:
      [batch] int32, the same on every device along `axes`. Of equal candidates, the lowest token.

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
    # Of an infinite row, what has the top is left, and alike.
    infinite = jnp.isinf(top)
    logits = jnp.where(infinite, jnp.where(logits == top, 0, -jnp.inf), logits)
    top = jnp.where(infinite, 0, top)
    # Below the top, not above 0, a tiny temperature cannot make two tokens infinite; of halves, the
    # difference of two numbers is one.
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


def seed_words(seeds: Any) -> Any:
    """The last 64 bits of each seed as [batch, 2] uint32, the high word first.

    Of any integers, a negative one in two's complement: an int32 is the same seed as an int64. Those
    that can be seen are read before jax makes 32 bits of them.
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
    """Refuses settings that are not numbers, or not of a batch.

    Raises:
      ValueError: they are not.
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


def check_seeds(seeds: Any, batch: int) -> None:
    """Refuses what is not one seed for each sequence.

    Raises:
      ValueError: it is not.
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
    """Gumbel noise for every sequence and token: a counter-based function of three numbers.

    Args:
      seeds: [batch] integers, or their `seed_words` [batch, 2].
      positions: [batch] integers.
      ids: [tokens] integers.

    Returns:
      [batch, tokens] float32, independent standard Gumbel variables.
    """

    def row(words: jax.Array, position: jax.Array) -> jax.Array:
        # Named, so that the user's default generator changes no draw.
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        key = jax.random.fold_in(key, position)
        hashed = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
        return jax.random.key_data(hashed)[:, 0]

    words = jnp.asarray(seeds if seeds.ndim == 2 else seed_words(seeds))
    bits = jax.vmap(row)(words, jnp.asarray(positions).astype(jnp.uint32))
    # Fine near 0, where the exponential variable -log(1 - v) is small and the noise is large.
    v = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    # 1 itself, to which the highest bits round, would be noise of -inf.
    v = jnp.minimum(v, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-v))


def _check(logits: jax.Array, sampling: Sampling, seeds: Any, positions: Any, devices: int) -> None:
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
    """In float32, as comparisons of numbers and of bits order alike: no NaN, no -0.0, and no
    subnormal numbers, which are 0 on some devices."""
    x = logits.astype(jnp.float32)
    return jnp.where(jnp.isnan(x), -jnp.inf, jnp.where(jnp.abs(x) < _TINY, 0, x))


def _is_numbers(x: Any) -> bool:
    """Whether it is a list or tuple of numbers."""
    return type(x) in (list, tuple) and all(isinstance(each, _NUMBER) for each in x)


def _argmax(x: jax.Array, ids: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    top = jnp.max(x, axis=1)
    token = ids[jnp.argmax(x, axis=1)]
    if not axes:
        return token
    none = jnp.iinfo(jnp.int32).max
    return lax.pmin(jnp.where(top == lax.pmax(top, axes), token, none), axes)
