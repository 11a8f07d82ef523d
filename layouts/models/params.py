"""A decoder's parameters: a plain pytree of arrays, those of the layers stacked on a leading dimension.

  {"embedding": [vocab, E], "blocks": {...}, "final_norm": {"scale": [E]}, "unembedding": [vocab, E]}

and in `blocks`, each with `layers` in front:

  "norm": {"scale": [E]}, "w_q": [E, H * D], "w_kv": [E, K * 2 * D], "w_o": [H * D, E],
  "w_in": [E, F], "w_gate": [E, F], "w_out": [F, E]

Serial blocks have `norm_ffn`, gated feedforwards `w_gate`, and models without a tied embedding
`unembedding`; with biases, a layernorm has a "bias": [E] and each matrix w_* [n, m] a b_*: [m]. H and K
count padded heads. Heads are consecutive, and in "w_kv" each is its key and then its value: the TPU
compiler copies a matrix that is stored in more than two dimensions in each step, and two small matmuls
cost more than their bytes. Any matrix, and each table, may be a `collective_einsum.Quantized`.

`blocks` may also be a list with such a tree for each layer, without `layers` in front: see
`stacked_params`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from collective_einsum import Quantized
from collective_einsum import quantize as quantize_array

from .config import ModelConfig
from .stacked_params import Params, is_unrolled, layer_of, unroll

# A matmul sums over rows; columns are output channels.
_MATRICES = ("w_q", "w_kv", "w_o", "w_in", "w_gate", "w_out")
# Embedding and unembedding. If quantized, one scale for each row, that of a token.
_TABLES = ("embedding", "unembedding")
# The dimension of heads times D in each array, counted from the last; or, below, of heads times 2 D.
HEAD_DIM = {"w_q": -1, "w_o": -2, "b_q": -1}
KV_HEAD_DIM = {"w_kv": -1, "b_kv": -1}


def params_shapes(
    config: ModelConfig,
    dtype: DTypeLike = jnp.bfloat16,
    *,
    int8: bool = False,
    unrolled: bool = False,
) -> Params:
    """The parameter tree with a `jax.ShapeDtypeStruct` for each array.

    Args:
      config: the model.
      dtype: of every array; floating.
      int8: as `quantize` leaves it: matrices and tables are Quantized, standing for `dtype`.
      unrolled: "blocks" is a list with a tree of arrays for each layer.
    """
    tree = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)),
        _shapes(config),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    tree = jax.eval_shape(unroll, tree) if unrolled else tree
    return jax.eval_shape(quantize, tree) if int8 else tree


def _shapes(config: ModelConfig) -> Params:
    e, f, d = config.d_model, config.d_ff, config.d_head
    h, k = config.stored_heads, config.stored_kv_heads
    norm = {"scale": (e,)} | ({"bias": (e,)} if config.norm_bias else {})
    block: Params = {"norm": norm}
    if config.block == "serial":
        block["norm_ffn"] = norm
    block |= {"w_q": (e, h * d), "w_kv": (e, k * 2 * d), "w_o": (h * d, e)}
    block |= {"w_in": (e, f)} | ({"w_gate": (e, f)} if config.gated else {}) | {"w_out": (f, e)}
    if config.biases:
        block |= {"b" + name[1:]: block[name][1:] for name in _MATRICES if name in block}
    stacked = jax.tree.map(
        lambda shape: (config.layers, *shape), block, is_leaf=lambda node: isinstance(node, tuple)
    )
    table = (config.vocab, e)
    tree: Params = {"embedding": table, "blocks": stacked, "final_norm": norm}
    return tree if config.tied_embedding else tree | {"unembedding": table}


@functools.partial(jax.jit, static_argnums=(1, 2))
def init(key: jax.Array, config: ModelConfig, dtype: DTypeLike = jnp.bfloat16) -> Params:
    """Random parameters; each number depends only on `key` and its index in the unsharded array.

    Run it as `jax.jit(init, static_argnums=(1, 2), out_shardings=...)(key, config, dtype)` to have
    every device make its own shard only; the numbers do not depend on the sharding. Biases are not 0
    and norm scales not 1, so that a comparison sees every term of the model; only padded heads are 0.

    Args:
      key: a `jax.random.key`.
      config: the model.
      dtype: of every array; numbers are drawn in float32 and rounded.
    """
    # A loop compiles one layer: all of PaLM 540B at once took minutes.
    blocks = lax.map(lambda i: init_layer(key, i, config, dtype), jnp.arange(config.layers))
    return init_ends(key, config, dtype) | {"blocks": blocks}


def init_layer(key: jax.Array, layer: Any, config: ModelConfig, dtype: DTypeLike) -> Params:
    """The parameters of one layer that `init` makes."""
    shapes = layer_of(params_shapes(config, dtype, unrolled=True)["blocks"], 0)
    own = jax.random.fold_in(jax.random.fold_in(key, 0), layer)
    return _random(own, shapes, config)


def init_ends(key: jax.Array, config: ModelConfig, dtype: DTypeLike) -> Params:
    """The parameters outside of the blocks that `init` makes."""
    shapes = params_shapes(config, dtype)
    del shapes["blocks"]
    return _random(key, shapes, config)


def _random(key: jax.Array, shapes: Any, config: ModelConfig) -> Any:
    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> jax.Array:
        # A number of its own for each array, so that adding one leaves the others as they were.
        own = int.from_bytes("/".join(map(_key, path)).encode(), "big") % (2**31 - 1)
        x = _draw(jax.random.fold_in(key, own), _name(path), shape.shape, config)
        return _mask_padding(_name(path), x, config).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _draw(key: jax.Array, name: str, shape: tuple[int, ...], config: ModelConfig) -> jax.Array:
    # Odd integers below 2**23 in magnitude, exact in float32, and one rounding each afterwards: the
    # same bits on every device, whatever the compiler fuses.
    bits = jax.random.bits(key, shape, jnp.uint32)
    uniform = (2 * (bits >> 9).astype(jnp.int32) + (1 - 2**23)).astype(jnp.float32)
    if name == "scale":
        return 1 + uniform * 2.0**-25
    fan_in = {"w_o": config.heads * config.d_head, "w_out": config.d_ff}
    if name in _MATRICES or name in _TABLES:
        # Products keep the variance of their operand; those that layers add to a token's embedding get
        # more, so that layers decide about the next token.
        deviation = (3 if name in fan_in else 1) / math.sqrt(fan_in.get(name, config.d_model))
    else:
        # A bias: visible beside the activations of unit variance that it is added to.
        deviation = 0.1
    # A uniform number in (-a, a) has the standard deviation a / sqrt(3).
    return uniform * (deviation * math.sqrt(3) * 2.0**-23)


def _mask_padding(name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Zeros in one layer's padded heads."""
    if name not in HEAD_DIM or config.stored_heads == config.heads:
        return x
    heads = x.ndim + HEAD_DIM[name]
    real = np.repeat(config.real_heads, config.d_head)
    real = real.reshape([-1 if i == heads else 1 for i in range(x.ndim)])
    return jnp.where(real, x, 0)


def quantize(params: Params) -> Params:
    """Quantizes every matrix and table to int8, with one scale per output channel.

    Each Quantized has the dtype of its array as the dtype that it stands for. Works under jit and
    `jax.eval_shape`, and keeps shardings.

    Raises:
      ValueError: `params` is no dict.
    """

    if not isinstance(params, Mapping):
        raise ValueError(f"quantize takes the parameters of a model, got {type(params).__name__}")

    def leaf(path: Any, x: Any) -> Any:
        name = _name(path)
        # A table has a scale for each row, a matrix for each column.
        if name in _TABLES:
            return quantize_array(x, axis=x.ndim - 1)
        return quantize_array(x, axis=x.ndim - 2) if name in _MATRICES else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def standing_for(weights: Any, dtype: DTypeLike) -> Any:
    """Weights in which each Quantized stands for `dtype`, whatever dtype its array had."""

    def leaf(x: Any) -> Any:
        return dataclasses.replace(x, dtype=dtype) if isinstance(x, Quantized) else x

    return jax.tree.map(leaf, weights, is_leaf=lambda x: isinstance(x, Quantized))


def activation_dtype(params: Mapping[str, Any]) -> np.dtype[Any]:
    """The dtype of activations between layers: that of the norms' scales."""
    return params["final_norm"]["scale"].dtype


def check_params(params: Any, config: ModelConfig) -> None:
    """Refuses parameters that do not fit `config`.

    Args:
      params: global arrays (or ShapeDtypeStructs).
      config: the model.

    Raises:
      ValueError: an array is missing or unknown, has another shape, is not floating (or Quantized,
        where that is allowed), or has another dtype than the rest.
    """
    _check_containers(params, config)
    unrolled = is_unrolled(params)
    if unrolled and len(params["blocks"]) != config.layers:
        raise ValueError(
            f"{config.name}: params have blocks of {len(params['blocks'])} layers, but the config "
            f"has {config.layers}"
        )
    expected = _leaves(params_shapes(config, unrolled=unrolled))
    given = _leaves(params)
    for path in [*expected, *given]:
        if path not in given:
            raise ValueError(
                f"{config.name}: params lack {path!r} of shape {expected[path].shape}"
                f"{_reason(path, config)}"
            )
        if path not in expected:
            raise ValueError(
                f"{config.name}: params have {path!r}, which this config does not use"
                f"{_reason(path, config)}"
            )
    for path, x in given.items():
        if not hasattr(x, "dtype") or not hasattr(x, "shape"):
            raise ValueError(f"{config.name}: params[{path!r}]={x!r} must be an array")
    dtype = given["final_norm/scale"].dtype
    for path, x in given.items():
        if tuple(x.shape) != expected[path].shape:
            raise ValueError(
                f"{config.name}: params[{path!r}] has shape {tuple(x.shape)}, but the config needs "
                f"{expected[path].shape}{_reason(path, config)}"
            )
        _check_leaf(path, x, dtype, config)


def _check_containers(params: Any, config: ModelConfig) -> None:
    """Refuses params that are no mapping, and blocks that are neither a mapping nor a list."""
    name, value, kinds = "params", params, (Mapping,)
    if isinstance(params, Mapping):
        name, value = "params['blocks']", params.get("blocks", {})
        kinds = (Mapping, list, tuple)
    if not isinstance(value, kinds):
        raise ValueError(
            f"{config.name}: {name} must be as layouts.init makes them, got {type(value).__name__}"
        )


def check_layer_weights(
    weights: Mapping[str, Any], config: ModelConfig, names: Sequence[str], *, whole: bool
) -> None:
    """Refuses weights that are not those of one layer of `config`.

    Args:
      weights: of one layer; those that `names` does not list are ignored.
      config: the model.
      names: the weights that the layer uses, as far as the config has them.
      whole: whether they are global arrays, whose shapes are checked, rather than shards.

    Raises:
      ValueError: an array is missing, one is given that the config does not have, or has another shape.
    """
    layer = layer_of(params_shapes(config, unrolled=True)["blocks"], 0)
    expected = _leaves({name: layer[name] for name in names if name in layer})
    given = _leaves({name: weights[name] for name in names if name in weights})
    for path in [*expected, *given]:
        if path not in given or path not in expected:
            have = "have no" if path not in given else "have"
            raise ValueError(
                f"{config.name}: weights {have} {path!r}, which a layer of this config "
                f"{'needs' if path not in given else 'does not use'}{_reason(path, config)}"
            )
        shape = tuple(given[path].shape)
        if whole and shape != expected[path].shape:
            stacked = shape[1:] == expected[path].shape
            hint = "; give those of one layer, such as w[0] of stacked ones" if stacked else ""
            raise ValueError(
                f"{config.name}: weights[{path!r}] has shape {shape}, but a layer needs "
                f"{expected[path].shape}{_reason(path, config)}{hint}"
            )


def _check_leaf(path: str, x: Any, dtype: Any, config: ModelConfig) -> None:
    name = path.rsplit("/", 1)[-1]
    if isinstance(x, Quantized):
        if name not in _MATRICES and name not in _TABLES:
            raise ValueError(
                f"{config.name}: params[{path!r}] is Quantized; only matrices and tables may be"
            )
        summed = len(x.shape) - (1 if name in _TABLES else 2)
        scales = tuple(1 if i == summed else size for i, size in enumerate(x.shape))
        if tuple(x.scale.shape) != scales:
            raise ValueError(
                f"{config.name}: params[{path!r}] has scales of shape {tuple(x.scale.shape)}, but "
                f"one per output channel has {scales}; make it with layouts.models.params.quantize"
            )
        # A step makes it stand for the dtype of the other arrays.
        return
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype != dtype:
        raise ValueError(
            f"{config.name}: params[{path!r}] is {describe(x)}, but every array must be floating "
            f"and of one dtype, here that of final_norm/scale, {dtype}"
        )


def _leaves(params: Any) -> dict[str, Any]:
    flat, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda node: isinstance(node, Quantized)
    )
    return {"/".join(_key(entry) for entry in path): x for path, x in flat}


def _reason(path: str, config: ModelConfig) -> str:
    """The fields of the config that decide about an array, for a message."""
    name = path.rsplit("/", 1)[-1]
    if "norm_ffn" in path:
        return f" (block={config.block!r})"
    if name == "w_gate" or name == "b_gate":
        return f" (gated={config.gated}, biases={config.biases})"
    if name == "unembedding":
        return f" (tied_embedding={config.tied_embedding})"
    if name == "bias" or name.startswith("b_"):
        return f" (biases={config.biases}, norm={config.norm!r})"
    if name in HEAD_DIM or name in KV_HEAD_DIM:
        return (
            f" (heads={config.heads}, kv_heads={config.kv_heads}, "
            f"padded_heads={config.padded_heads}; layouts.models.head_padding.pad_heads adds padding)"
        )
    return ""


def describe(x: Any) -> str:
    """The dtype and shape of an array, for a message."""
    kind = "Quantized standing for " if isinstance(x, Quantized) else ""
    return f"{kind}{getattr(x, 'dtype', type(x).__name__)} of shape {getattr(x, 'shape', ())}"


def _key(entry: Any) -> str:
    return str(getattr(entry, "key", entry))


def _name(path: Any) -> str:
    return _key(path[-1])
