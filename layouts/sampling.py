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

from .candidates import LARGEST_VOCAB, column, likeliest

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
      temperature: divides the logits; 0, or None, takes the most likely token.
      top_k: only the k most likely tokens, exactly k of them.
      top_p: only the fewest most likely tokens that have probability p together, after temperature
        and top_k; at least one.

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
            value = getattr(self, field)
            # Under a transformation, the fields are whatever it puts there.
            if isinstance(value, (bool, int, float, np.ndarray, np.generic)) and not np.all(
                holds(np.asarray(value, np.float64))
            ):
                raise ValueError(f"Sampling: {field}={value} must be {rule}")
        if self.temperature is None and (self.top_k is not None or self.top_p is not None):
            raise ValueError(
                f"Sampling: top_k={self.top_k} and top_p={self.top_p} do nothing to a greedy "
                "choice; give a temperature, such as 1.0"
            )


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
    seeds: jax.Array,
    positions: jax.Array,
    axes: AxisNames = (),
) -> jax.Array:
    """Draws one token for each sequence.

    Args:
      logits: [batch, vocab], natural logarithms of probabilities up to a constant of each row; with
        `axes`, this device's shard of the vocabulary, in the order of the axes, inside a shard_map.
        -inf rules a token out; one token must be left.
      sampling: how.
      seeds: [batch] integers: the sequence's own seed.
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
    # -0.0 and 0.0 are equal, and must be where their bits are compared.
    logits = logits.astype(jnp.float32)
    logits = jnp.where(logits == 0, 0, logits)
    if sampling.temperature is None:
        return _argmax(logits, ids, axes)
    temperature = column(sampling.temperature, jnp.float32)
    warm = temperature > 0
    top = jnp.max(logits, axis=1, keepdims=True)
    # Below the top, not above 0, a tiny temperature cannot make two tokens infinite.
    scaled = (logits - (lax.pmax(top, axes) if axes else top)) / jnp.where(warm, temperature, 1)
    kept = likeliest(
        logits,
        scaled,
        ids,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        axes=axes,
        vocab=local * devices,
    )
    noisy = scaled + jnp.where(warm, gumbel(seeds, positions, ids), 0)
    return _argmax(jnp.where(kept, noisy, -jnp.inf), ids, axes)


def gumbel(seeds: jax.Array, positions: jax.Array, ids: jax.Array) -> jax.Array:
    """Gumbel noise for every sequence and token: a counter-based function of three numbers.

    Args:
      seeds: [batch] integers.
      positions: [batch] integers.
      ids: [tokens] integers.

    Returns:
      [batch, tokens] float32, independent standard Gumbel variables.
    """

    def row(seed: jax.Array, position: jax.Array) -> jax.Array:
        # Named, so that the user's default generator changes no draw.
        key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
        hashed = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, ids)
        return jax.random.key_data(hashed)[:, 0]

    bits = jax.vmap(row)(seeds.astype(jnp.uint32), positions.astype(jnp.uint32))
    # Fine near 0, where the exponential variable -log(1 - v) is small and the noise is large.
    v = (bits.astype(jnp.float32) + 0.5) * 2.0**-32
    # 1 itself, to which the highest bits round, would be noise of -inf.
    v = jnp.minimum(v, 1 - 2.0**-24)
    return -jnp.log(-jnp.log1p(-v))


def _check(
    logits: jax.Array, sampling: Sampling, seeds: jax.Array, positions: jax.Array, devices: int
) -> None:
    if logits.ndim != 2:
        raise ValueError(f"sample: logits of shape {logits.shape} must be [batch, vocab]")
    batch = logits.shape[0]
    given = {"seeds": seeds, "positions": positions}
    for name, x in given.items():
        if x.shape != (batch,) or not jnp.issubdtype(x.dtype, jnp.integer):
            raise ValueError(
                f"sample: {name} of {x.dtype} and shape {x.shape} must be integers of shape "
                f"({batch},), one for each row of the logits"
            )
    for field in dataclasses.fields(sampling):
        setting = getattr(sampling, field.name)
        if setting is not None and jnp.shape(setting) not in ((), (batch,)):
            raise ValueError(
                f"sample: sampling.{field.name} of shape {jnp.shape(setting)} must be one number, "
                f"or one for each of {batch} rows"
            )
    if sampling.top_p is not None and logits.shape[1] * devices > LARGEST_VOCAB:
        raise ValueError(
            f"sample: top_p counts the probabilities of at most {LARGEST_VOCAB} tokens exactly, "
            f"and the vocabulary has {logits.shape[1] * devices}"
        )


def _argmax(x: jax.Array, ids: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    top = jnp.max(x, axis=1)
    token = ids[jnp.argmax(x, axis=1)]
    if not axes:
        return token
    none = jnp.iinfo(jnp.int32).max
    return lax.pmin(jnp.where(top == lax.pmax(top, axes), token, none), axes)
