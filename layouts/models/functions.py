"""The pointwise mathematics of a transformer, the same for one device and for many.

Functions compute in `wide(dtype)`, float32 for bfloat16, and return the dtype of their input, unless
they say otherwise. None communicates: a function that needs a full row of E takes, or returns, the sums
that a caller with a slice of E all-reduces over devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .config import Activation, ModelConfig, Norm, Rotary

# exp(x) = 2**(x * LOG2_E). Hardware has exp2; where x is multiplied by a constant anyway (a query by
# 1/sqrt(D), a logit by 1/temperature), this factor is part of the constant.
LOG2_E = math.log2(math.e)
# The biases between the two matmuls of a feedforward, by their names in `params`.
BIASES = ("b_in", "b_gate")


def wide(dtype: DTypeLike) -> np.dtype:
    """The dtype in which functions of `dtype` are computed: float32, or `dtype` itself if wider."""
    return jnp.dtype(dtype) if jnp.finfo(dtype).bits > 32 else jnp.dtype(jnp.float32)


def swish(x: jax.Array) -> jax.Array:
    """x * sigmoid(x), with the exponential in base 2."""
    return x / (1 + jnp.exp2(x * -LOG2_E))


def activate(x: jax.Array, activation: Activation) -> jax.Array:
    """The activation, of any shape."""
    y = x.astype(wide(x.dtype))
    if activation == "silu":
        y = swish(y)
    elif activation == "relu":
        y = jax.nn.relu(y)
    else:
        y = jax.nn.gelu(y, approximate=activation == "gelu_tanh")
    return y.astype(x.dtype)


def feedforward_hidden(
    inner: jax.Array, gate: jax.Array | None, activation: Activation
) -> jax.Array:
    """activation(gate) * inner, or activation(inner) without a gate (None), of any one shape; the
    product is rounded once."""
    if gate is None:
        return activate(inner, activation)
    narrow = inner.dtype
    return (activate(gate.astype(wide(narrow)), activation) * inner.astype(wide(narrow))).astype(
        narrow
    )


def norm_moments(x: jax.Array, kind: Norm) -> jax.Array:
    """The sum of squares of each row and, for a layernorm, its sum.

    Args:
      x: [..., E or a slice of E]. The moments of a row are the sum of the moments of its slices.
      kind: "rmsnorm" or "layernorm".

    Returns:
      [..., 1] or [..., 2] in wide(x.dtype).
    """
    x = x.astype(wide(x.dtype))
    squares = jnp.sum(x * x, axis=-1)
    if kind == "rmsnorm":
        return squares[..., None]
    return jnp.stack([squares, jnp.sum(x, axis=-1)], axis=-1)


def norm_factors(
    moments: jax.Array, kind: Norm, size: int, epsilon: float
) -> tuple[jax.Array | None, jax.Array]:
    """A row's mean and the inverse of its deviation, so that (x - mean) * inverse is normal.

    Args:
      moments: of rows of `size` numbers, from `norm_moments`.
      kind: "rmsnorm" or "layernorm".
      size: E.
      epsilon: added to the mean square.

    Returns:
      mean [..., 1] or None for an rmsnorm, and inverse [..., 1]; both in the dtype of `moments`. A
      matmul after an rmsnorm may be given x * scale and its result multiplied by the inverse.
    """
    mean_square = moments[..., :1] / size
    if kind == "rmsnorm":
        return None, lax.rsqrt(mean_square + epsilon)
    mean = moments[..., 1:] / size
    # A difference of roundings must not reach the root as a negative number.
    variance = jnp.maximum(mean_square - mean * mean, 0)
    return mean, lax.rsqrt(variance + epsilon)


def normalize(
    x: jax.Array,
    weights: Mapping[str, jax.Array],
    config: ModelConfig,
    moments: jax.Array | None = None,
) -> jax.Array:
    """The config's norm.

    Args:
      x: [..., E], or [..., a slice of E] with `moments`.
      weights: "scale" and, if config.norm_bias, "bias": [E], or the same slice of it.
      config: the kind, the epsilon and E.
      moments: `norm_moments` of rows of E; by default those of `x`.
    """
    if moments is None:
        moments = norm_moments(x, config.norm)
    mean, inverse = norm_factors(moments, config.norm, config.d_model, config.norm_epsilon)
    y = x.astype(moments.dtype)
    y = (y if mean is None else y - mean) * inverse * weights["scale"].astype(y.dtype)
    if "bias" in weights:
        y = y + weights["bias"].astype(y.dtype)
    return y.astype(x.dtype)


def rotary_tables(
    positions: jax.Array, rotary: Rotary, d_head: int, dtype: DTypeLike = jnp.float32
) -> tuple[jax.Array, jax.Array]:
    """Sines and cosines of the angles by which each position rotates each dimension.

    Args:
      positions: [batch, length] integers.
      rotary: base and fraction.
      d_head: D.
      dtype: of the tables.

    Returns:
      sin and cos, [batch, length, D]; 0 and 1 in dimensions that are not rotated. All layers share
      them.
    """
    dims = rotary.dims(d_head)
    frequencies = rotary.base ** -(np.arange(0, dims, 2) / dims)
    by_dim = np.repeat(frequencies, 2) if rotary.interleaved else np.tile(frequencies, 2)
    by_dim = jnp.asarray(np.pad(by_dim, (0, d_head - dims)), dtype)
    angles = positions[..., None].astype(dtype) * by_dim
    return jnp.sin(angles), jnp.cos(angles)


def rotate(
    x: jax.Array, tables: tuple[jax.Array, jax.Array] | None, rotary: Rotary | None
) -> jax.Array:
    """Rotary embedding of queries or keys.

    Args:
      x: [batch, length, heads, D].
      tables: from `rotary_tables`, for the positions of x; None if `rotary` is.
      rotary: says which dimensions make pairs; with None, x is returned.
    """
    if rotary is None or tables is None:
        return x
    sin, cos = (table[:, :, None, :].astype(wide(x.dtype)) for table in tables)
    # A matmul, which is exact, exchanges the dimensions of each pair: a TPU moves single lanes slowly.
    across = jnp.matmul(
        x,
        _quarter_turn(rotary, x.shape[-1]).astype(x.dtype),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=sin.dtype,
    )
    return (x.astype(cos.dtype) * cos + across * sin).astype(x.dtype)


def _quarter_turn(rotary: Rotary, d_head: int) -> np.ndarray:
    """The matrix [D, D] that maps each pair of dimensions (a, b) to (-b, a), and others to 0."""
    dims = rotary.dims(d_head)
    first = np.arange(0, dims, 2) if rotary.interleaved else np.arange(dims // 2)
    second = first + (1 if rotary.interleaved else dims // 2)
    turn = np.zeros((d_head, d_head), np.float32)
    turn[first, second], turn[second, first] = 1, -1
    return turn


def attention_scale(d_head: int) -> float:
    """The factor of queries: 1/sqrt(D), times log2(e) for a softmax in base 2."""
    return LOG2_E / math.sqrt(d_head)


def softmax_base2(scores: jax.Array, visible: jax.Array | None = None, axis: int = -1) -> jax.Array:
    """2**scores over their sum along `axis`: softmax(s) = softmax_base2(s * LOG2_E).

    Args:
      scores: any shape, in base 2.
      visible: booleans that broadcast against scores; False has probability 0. Where all are False, all
        probabilities are 0.
      axis: the dimension along which probabilities sum to 1.
    """
    s = scores.astype(wide(scores.dtype))
    if visible is not None:
        s = jnp.where(visible, s, -jnp.inf)
    top = jnp.max(s, axis=axis, keepdims=True)
    powers = jnp.exp2(s - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(powers, axis=axis, keepdims=True)
    return (powers / jnp.where(total == 0, 1, total)).astype(scores.dtype)


def causal_mask(
    query_positions: jax.Array, key_positions: jax.Array, key_lengths: jax.Array
) -> jax.Array:
    """The keys that a query sees: none at a later position, and none at or after its sequence's length.

    Args:
      query_positions: [batch, length] integers.
      key_positions: [keys] or [batch, keys] integers.
      key_lengths: [batch] integers.

    Returns:
      [batch, length, keys] booleans.
    """
    keys = jnp.broadcast_to(key_positions, (key_lengths.shape[0], key_positions.shape[-1]))
    present = keys < key_lengths[:, None]
    return (keys[:, None, :] <= query_positions[:, :, None]) & present[:, None, :]


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """y + bias, rounded once; y if bias is None."""
    if bias is None:
        return y
    return (y.astype(wide(y.dtype)) + bias.astype(wide(y.dtype))).astype(y.dtype)


def scale_rows(y: jax.Array, factor: jax.Array | None) -> jax.Array:
    """y [rows, n] times factor [rows, 1], rounded once; y if factor is None."""
    return y if factor is None else (y.astype(factor.dtype) * factor).astype(y.dtype)


def hidden(
    inner: Sequence[jax.Array], biases: Mapping[str, jax.Array], config: ModelConfig
) -> jax.Array:
    """The hidden activations of a feedforward.

    Args:
      inner: products with w_in and, if gated, with w_gate, each [rows, a slice of F].
      biases: the same slice of the biases in `BIASES`, as far as the model has them.
      config: activation and gate.

    Returns:
      [rows, the slice of F].
    """
    biased = [add_bias(y, biases.get(name)) for y, name in zip(inner, BIASES, strict=False)]
    return feedforward_hidden(biased[0], biased[1] if config.gated else None, config.activation)
