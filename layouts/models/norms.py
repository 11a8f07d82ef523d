"""Norms of rows that may lie in slices on several devices, and of heads.

A row's moments are computed of each slice, and a caller joins them over devices: sums of squares for an
rmsnorm; for a layernorm the mean and the sum of squared deviations from it, since a difference of the
mean square and the squared mean loses what deviates little from a large mean (Chan, Golub and LeVeque,
"Updating formulae and a pairwise algorithm for computing sample variances", 1979).

Functions compute in `wide(dtype)`, float32 for bfloat16, and return the dtype of their input, unless
they say otherwise. None communicates.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax

from .config import ModelConfig, Norm
from .functions import wide


def norm_moments(x: jax.Array, kind: Norm) -> jax.Array:
    """The moments of each row.

    Args:
      x: [..., n], a row or a slice of it.
      kind: "rmsnorm" or "layernorm".

    Returns:
      [..., 1], the sum of squares, or [..., 2], the mean and the sum of squared deviations from it; in
      wide(x.dtype).
    """
    x = x.astype(wide(x.dtype))
    if kind == "rmsnorm":
        return jnp.sum(x * x, axis=-1, keepdims=True)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    deviations = x - mean
    return jnp.concatenate(
        [mean, jnp.sum(deviations * deviations, axis=-1, keepdims=True)], axis=-1
    )


def joined_moments(parts: jax.Array, size: int) -> jax.Array:
    """The moments [..., 2] of a layernorm's rows, of which `parts` [slices, ..., 2] has those of slices
    of `size` numbers each."""
    means, squares = parts[..., :1], parts[..., 1:]
    mean = jnp.mean(means, axis=0)
    apart = jnp.sum((means - mean) ** 2, axis=0) * size
    return jnp.concatenate([mean, jnp.sum(squares, axis=0) + apart], axis=-1)


def norm_factors(
    moments: jax.Array, kind: Norm, size: int, epsilon: float
) -> tuple[jax.Array | None, jax.Array]:
    """A row's mean and the inverse of its deviation, so that (x - mean) * inverse is normal.

    Args:
      moments: of rows of `size` numbers.
      kind: "rmsnorm" or "layernorm".
      size: E.
      epsilon: added to the mean square.

    Returns:
      mean [..., 1] or None for an rmsnorm, and inverse [..., 1]; both in the dtype of `moments`. A
      matmul after an rmsnorm may be given x * scale and its result multiplied by the inverse.
    """
    if kind == "rmsnorm":
        return None, lax.rsqrt(moments / size + epsilon)
    return moments[..., :1], lax.rsqrt(moments[..., 1:] / size + epsilon)


def norm_scale(scale: jax.Array, config: ModelConfig) -> jax.Array:
    """A norm's scale with the config's offset, in wide(scale.dtype)."""
    scale = scale.astype(wide(scale.dtype))
    return scale + config.norm_offset if config.norm_offset else scale


def normalize(
    x: jax.Array,
    weights: Mapping[str, jax.Array],
    config: ModelConfig,
    moments: jax.Array | None = None,
) -> jax.Array:
    """The config's norm of rows of E.

    Args:
      x: [..., E or a slice of E].
      weights: "scale" and, if config.norm_bias, "bias": as long as the rows of `x`.
      config: the kind, the epsilon, the offset and E.
      moments: of full rows; those of `x` unless given.
    """
    if moments is None:
        moments = norm_moments(x, config.norm)
    mean, inverse = norm_factors(moments, config.norm, config.d_model, config.norm_epsilon)
    y = x.astype(moments.dtype)
    y = (y if mean is None else y - mean) * inverse
    y = y * norm_scale(weights["scale"], config).astype(y.dtype)
    if "bias" in weights:
        y = y + weights["bias"].astype(y.dtype)
    return y.astype(x.dtype)


def normalize_heads(
    x: jax.Array, scale: jax.Array, config: ModelConfig, moments: jax.Array, size: int
) -> jax.Array:
    """The norm of queries or keys before they are rotated.

    Args:
      x: [..., heads, D].
      scale: [heads * D].
      config: the kind, the epsilon and the offset.
      moments: [..., heads, 1 or 2] of each head, or [..., 1, 1] of all heads of the model.
      size: how many numbers these are of.
    """
    assert config.query_key_norm is not None
    mean, inverse = norm_factors(moments, config.query_key_norm, size, config.norm_epsilon)
    y = x.astype(moments.dtype)
    y = (y if mean is None else y - mean) * inverse
    own = norm_scale(scale, config).astype(y.dtype).reshape(x.shape[-2:])
    return (y * own).astype(x.dtype)
