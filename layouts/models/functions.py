"""The pointwise mathematics of a transformer, the same for one device and for many.

Functions compute in `wide(dtype)`, float32 for bfloat16, and return the dtype of their input, unless
they say otherwise. None communicates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from .config import Activation, GateClamp, ModelConfig, Rotary

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
    elif activation in ("relu", "relu_squared"):
        y = jax.nn.relu(y)
        y = y * y if activation == "relu_squared" else y
    else:
        y = jax.nn.gelu(y, approximate=activation == "gelu_tanh")
    return y.astype(x.dtype)


def feedforward_hidden(
    inner: jax.Array,
    gate: jax.Array | None,
    activation: Activation,
    clamp: GateClamp | None = None,
) -> jax.Array:
    """activation(gate) * inner, or activation(inner) without a gate (None), of any one shape; the
    product is rounded once. With a clamp, what `GateClamp` says."""
    if gate is None:
        return activate(inner, activation)
    narrow = inner.dtype
    if clamp is not None:
        g, u = (y.astype(wide(narrow)) for y in (gate, inner))
        g, u = jnp.minimum(g, clamp.limit), jnp.clip(u, -clamp.limit, clamp.limit)
        return (swish(g * clamp.alpha) / clamp.alpha * (u + clamp.offset)).astype(narrow)
    return (activate(gate.astype(wide(narrow)), activation) * inner.astype(wide(narrow))).astype(
        narrow
    )


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
      sin and cos, [batch, length, D], times the scaling's factor; 0 and 1 in dimensions that are not
      rotated. All layers share them.
    """
    dims = rotary.dims(d_head)
    frequencies, factor = rotary.frequencies(d_head)
    by_dim = np.repeat(frequencies, 2) if rotary.interleaved else np.tile(frequencies, 2)
    by_dim = jnp.asarray(np.pad(by_dim, (0, d_head - dims)), dtype)
    angles = positions[..., None].astype(dtype) * by_dim
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if factor == 1:
        return sin, cos
    factors = jnp.asarray(np.where(np.arange(d_head) < dims, factor, 1.0), dtype)
    return sin * factors, cos * factors


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


def base2_scores(
    products: jax.Array, config: ModelConfig, key_scale: jax.Array | None = None
) -> jax.Array:
    """Scores in base 2 of products of queries and keys, as `softmax_base2` takes them: scaled, capped
    as the config says, and times log2(e).

    Args:
      products: any shape.
      config: the scale, by default 1/sqrt(D), and the cap.
      key_scale: factors of quantized keys, which broadcast against `products`; None for 1.
    """
    scale = 1 / math.sqrt(config.d_head)
    scale = scale if config.attention_scale is None else config.attention_scale
    capped = config.attention_cap is not None
    scores = products * (scale if capped else scale * LOG2_E)
    scores = scores if key_scale is None else scores * key_scale
    return soft_cap(scores, config.attention_cap) * LOG2_E if capped else scores


def soft_cap(x: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(x / cap); x if `cap` is None."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def as_logits(
    products: jax.Array, config: ModelConfig, bias: jax.Array | None, first: jax.Array | int = 0
) -> jax.Array:
    """Logits of products of normalized rows with the unembedding.

    Args:
      products: [..., a slice of the stored vocabulary].
      config: scale, cap, and how many tokens there are; those behind them get -inf.
      bias: of the same slice, or None.
      first: the token that the slice starts with.
    """
    logits = products if bias is None else products + bias.astype(products.dtype)
    if config.logit_scale != 1:
        logits = logits * config.logit_scale
    logits = soft_cap(logits, config.logit_cap)
    if config.stored_vocab == config.vocab:
        return logits
    tokens = first + jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.where(tokens < config.vocab, logits, -jnp.inf)


def add_residual(x: jax.Array, *terms: jax.Array, config: ModelConfig) -> jax.Array:
    """x plus what attention and the feedforward add, times `residual_scale`, rounded once."""
    wider = wide(x.dtype)
    total = sum((term.astype(wider) for term in terms[1:]), terms[0].astype(wider))
    scaled = total if config.residual_scale == 1 else total * config.residual_scale
    return (x.astype(wider) + scaled).astype(x.dtype)


def scale_embedding(x: jax.Array, config: ModelConfig) -> jax.Array:
    """Embedded tokens times `embedding_scale`, which is rounded to their dtype, as Gemma's is."""
    if config.embedding_scale == 1:
        return x
    return x * jnp.asarray(config.embedding_scale, x.dtype)


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
    query_positions: jax.Array,
    key_positions: jax.Array,
    key_lengths: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """The keys that a query sees: none at a later position, none at or after its sequence's length, and
    none that is `window` positions or more before it.

    Args:
      query_positions: [batch, length] integers.
      key_positions: [keys] or [batch, keys] integers.
      key_lengths: [batch] integers.
      window: None for all.

    Returns:
      [batch, length, keys] booleans.
    """
    keys = jnp.broadcast_to(key_positions, (key_lengths.shape[0], key_positions.shape[-1]))
    present = keys < key_lengths[:, None]
    back = query_positions[:, :, None] - keys[:, None, :]
    near = back >= 0 if window is None else (back >= 0) & (back < window)
    return near & present[:, None, :]


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
    gate = biased[1] if config.gated else None
    return feedforward_hidden(biased[0], gate, config.activation, config.gate_clamp)
