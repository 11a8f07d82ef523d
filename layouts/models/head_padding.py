"""Zero heads added to the parameters of a checkpoint, so that a mesh divides the number of heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from collective_einsum import Quantized

from .config import ModelConfig
from .param_checks import describe
from .params import HEAD_DIM, KV_HEAD_DIM, Params
from .stacked_params import LayerWeights, is_unrolled


def pad_heads(params: Params, config: ModelConfig) -> Params:
    """Adds the padded heads of `config` to parameters without padding, such as those of a checkpoint.

    Args:
      params: floating arrays with `config.heads` and `config.kv_heads` heads.
      config: the padded model.

    Returns:
      The same tree with heads of zeros; the model computes the same.

    Raises:
      ValueError: an array has another number of heads, or is Quantized.
    """

    if is_unrolled(params):
        return params | {"blocks": [_padded(layer, config) for layer in params["blocks"]]}
    return params | {"blocks": _padded(params["blocks"], config)}


def _padded(given: LayerWeights, config: ModelConfig) -> Params:
    """`pad_heads` of stacked blocks, or of one layer."""
    blocks = dict(given)
    real = np.array(config.real_heads)
    real_kv = np.array(config.real_kv_heads)
    for dims, heads, present, width in (
        (HEAD_DIM, config.heads, real, config.d_head),
        (KV_HEAD_DIM, config.kv_heads, real_kv, 2 * config.d_head),
        ({"norm_k": -1}, config.kv_heads, real_kv, config.d_head),
        ({"sinks": -1}, config.heads, real, 1),
    ):
        for name, dim in dims.items():
            if name not in blocks:
                continue
            x = blocks[name]
            columns = heads * width
            if isinstance(x, Quantized) or x.shape[dim] != columns:
                raise ValueError(
                    f"pad_heads: blocks/{name} must be a floating array with {heads} heads of "
                    f"{width} in dimension {dim}, {columns} in all, got "
                    f"{describe(x)}; pad first, then quantize"
                )
            blocks[name] = _spread(x, dim, present, width)
    return blocks


def _spread(x: jax.Array, dim: int, heads: np.ndarray, width: int) -> jax.Array:
    """x with `width` indices of dimension `dim` for each of `heads`: the next of x, or zeros where a
    head is False."""
    present = np.repeat(heads, width)
    index = np.where(present, np.cumsum(present) - 1, 0)
    shape = [-1 if i == x.ndim + dim else 1 for i in range(x.ndim)]
    return jnp.where(present.reshape(shape), jnp.take(x, index, axis=dim), 0)
