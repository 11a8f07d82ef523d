"""A decoder's parameters: a plain pytree of arrays, those of the layers stacked on a leading dimension.

  {"embedding": [vocab, E], "blocks": {...}, "final_norm": {"scale": [E]}, "unembedding": [vocab, E]}

and in `blocks`, each with `layers` in front:

  "norm": {"scale": [E]}, "w_q": [E, H * D], "w_kv": [E, K * 2 * D], "w_o": [H * D, E],
  "w_in": [E, F], "w_gate": [E, F], "w_out": [F, E]

Serial blocks have `norm_ffn`, and with norms behind attention and the feedforward `norm_after` and
`norm_after_ffn`; norms of queries and keys are `norm_q` [H * D] and `norm_k` [K * D]. Gated feedforwards
have `w_gate`, and models without a tied embedding `unembedding`. With biases, a layernorm has a "bias":
[E], each matrix w_* [n, m] a b_*: [m], and the unembedding `b_unembedding` [vocab]. H, K and vocab count
padded heads and tokens. With experts, `w_router` is [E, experts], F of each expert stands behind that of
the one before, in w_in, w_gate and w_out as in b_in and b_gate, and b_out is [experts, E]; `b_router` is
[experts]. A feedforward of width S that all tokens have beside their experts is `w_shared_in` [E, S],
`w_shared_gate` and `w_shared_out` [S, E], and what weighs its result `w_shared_router` [E, 1].

Heads are consecutive, and in "w_kv" each is its key and then its value: the TPU compiler copies a
matrix that is stored in more than two dimensions in each step, and two small matmuls cost more than
their bytes. Any matrix, and each table, may be a `collective_einsum.Quantized`. Norms and biases may be
float32 beside matrices of another dtype, which activations have.

Attention sinks are `sinks` [H]. A model with learned positions has `positions` [learned_positions, E]
beside the embedding, and one with a norm behind it `embedding_norm`, as `final_norm`.

`blocks` may also be a list with such a tree for each layer, without `layers` in front: see
`stacked_params`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import KeyPath
from jax.typing import DTypeLike

from collective_einsum import Quantized
from collective_einsum import quantize as quantize_array

from .config import Biased, ModelConfig
from .experts import Experts
from .stacked_params import Params, Tree, Weight, layer_of, unroll

# Of the feedforward that all tokens have beside their experts.
_SHARED = ("w_shared_in", "w_shared_gate", "w_shared_out")
# A matmul sums over rows; columns are output channels.
MATRICES = ("w_q", "w_kv", "w_o", "w_in", "w_gate", "w_out", *_SHARED)
# Embedding and unembedding. If quantized, one scale for each row, that of a token.
TABLES = ("embedding", "unembedding")
# The dimension of heads times D in each array, counted from the last; or, below, of heads times 2 D.
HEAD_DIM = {"w_q": -1, "w_o": -2, "b_q": -1, "norm_q": -1}
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
    e, f, d = config.d_model, config.hidden_columns, config.d_head
    h, k = config.stored_heads, config.stored_kv_heads
    norm = {"scale": (e,)} | ({"bias": (e,)} if config.norm_bias else {})
    block: Params = dict.fromkeys(config.norm_names, norm)
    if config.sinks:
        block["sinks"] = (h,)
    if config.query_key_norm is not None:
        block |= {"norm_q": (h * d,), "norm_k": (k * d,)}
    # Matrices: H7 in docs/compiler.md.
    block |= {"w_q": (e, h * d), "w_kv": (e, k * 2 * d), "w_o": (h * d, e)}
    block |= {"w_in": (e, f)} | ({"w_gate": (e, f)} if config.gated else {}) | {"w_out": (f, e)}
    biased = [name for name in MATRICES if name in block and config.has_bias(_bias_of(name))]
    block |= {"b" + name[1:]: block[name][1:] for name in biased}
    if config.experts is not None:
        block |= _expert_shapes(config, config.experts, block)
    stacked = jax.tree.map(
        lambda shape: (config.layers, *shape), block, is_leaf=lambda node: isinstance(node, tuple)
    )
    table = (config.stored_vocab, e)
    tree: Params = {"embedding": table, "blocks": stacked, "final_norm": norm}
    if not config.tied_embedding:
        tree["unembedding"] = table
    if config.learned_positions is not None:
        tree["positions"] = (config.learned_positions, e)
    if config.embedding_norm:
        tree["embedding_norm"] = norm
    return tree | ({"b_unembedding": table[:1]} if config.has_bias("unembedding") else {})


def _expert_shapes(config: ModelConfig, experts: Experts, block: Params) -> Params:
    """The arrays of a layer that only experts have, or that have another shape with them."""
    e, count = config.d_model, experts.count
    arrays: Params = {"w_router": (e, count)}
    if experts.router_bias:
        arrays["b_router"] = (count,)
    if experts.shared_router:
        arrays["w_shared_router"] = (e, 1)
    arrays |= dict.fromkeys(config.shared_input_names, (e, config.shared_width))
    if config.shared_width:
        arrays["w_shared_out"] = (config.shared_width, e)
    return arrays | ({"b_out": (count, e)} if "b_out" in block else {})


def _bias_of(matrix: str) -> Biased:
    """The name in `ModelConfig.biases` of the bias of a matrix."""
    return cast(Biased, matrix.removeprefix("w_"))


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


def init_layer(
    key: jax.Array, layer: jax.Array | int, config: ModelConfig, dtype: DTypeLike
) -> Params:
    """The parameters of one layer that `init` makes."""
    shapes = layer_of(params_shapes(config, dtype, unrolled=True)["blocks"], 0)
    own = jax.random.fold_in(jax.random.fold_in(key, 0), layer)
    return _random(own, shapes, config)


def init_ends(key: jax.Array, config: ModelConfig, dtype: DTypeLike) -> Params:
    """The parameters outside of the blocks that `init` makes."""
    shapes = params_shapes(config, dtype)
    del shapes["blocks"]
    return _random(key, shapes, config)


def _random(key: jax.Array, shapes: Params, config: ModelConfig) -> Params:
    def leaf(path: KeyPath, shape: jax.ShapeDtypeStruct) -> jax.Array:
        # A number of its own for each array, so that adding one leaves the others as they were.
        own = int.from_bytes("/".join(map(key_of, path)).encode(), "big") % (2**31 - 1)
        x = _draw(jax.random.fold_in(key, own), _name(path), shape.shape, config)
        return _mask_padding(_name(path), x, config).astype(shape.dtype)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def _draw(key: jax.Array, name: str, shape: tuple[int, ...], config: ModelConfig) -> jax.Array:
    # Odd integers below 2**23 in magnitude, exact in float32, and one rounding each afterwards: the
    # same bits on every device, whatever the compiler fuses.
    bits = jax.random.bits(key, shape, jnp.uint32)
    uniform = (2 * (bits >> 9).astype(jnp.int32) + (1 - 2**23)).astype(jnp.float32)
    if name in ("scale", "norm_q", "norm_k"):
        return 1 - config.norm_offset + uniform * 2.0**-25
    fan_in = {"w_o": config.heads * config.d_head, "w_out": config.d_ff}
    fan_in |= {"w_shared_out": config.shared_width}
    if name in MATRICES or name in (*TABLES, "positions", "w_router", "w_shared_router"):
        # Products keep the variance of their operand; those that layers add to a token's embedding get
        # more, so that layers decide about the next token.
        deviation = (3 if name in fan_in else 1) / math.sqrt(fan_in.get(name, config.d_model))
    else:
        # A bias: visible next to the activations of unit variance that it is added to.
        deviation = 0.1
    # A uniform number in (-a, a) has the standard deviation a / sqrt(3).
    return uniform * (deviation * math.sqrt(3) * 2.0**-23)


def _mask_padding(name: str, x: jax.Array, config: ModelConfig) -> jax.Array:
    """Zeros in one layer's padded heads."""
    real_kv = config.real_kv_heads
    for dims, present, width in (
        (HEAD_DIM, config.real_heads, config.d_head),
        (KV_HEAD_DIM, real_kv, 2 * config.d_head),
        ({"norm_k": -1}, real_kv, config.d_head),
        ({"sinks": -1}, config.real_heads, 1),
    ):
        if name in dims and not all(present):
            heads = x.ndim + dims[name]
            real = np.repeat(present, width)
            real = real.reshape([-1 if i == heads else 1 for i in range(x.ndim)])
            return jnp.where(real, x, 0)
    return x


def quantize(params: Params) -> Params:
    """Quantizes every matrix and table to int8, with one scale per output channel.

    Each Quantized has the dtype of its array as the dtype that it stands for. Works under jit and
    `jax.eval_shape`, and keeps shardings.

    Raises:
      ValueError: `params` is no dict.
    """

    if not isinstance(params, Mapping):
        raise ValueError(f"quantize takes the parameters of a model, got {type(params).__name__}")

    def leaf(path: KeyPath, x: jax.Array) -> Weight:
        name = _name(path)
        # A table has a scale for each row, a matrix for each column.
        if name in TABLES:
            return quantize_array(x, axis=x.ndim - 1)
        return quantize_array(x, axis=x.ndim - 2) if name in MATRICES else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def standing_for(weights: Tree, dtype: DTypeLike) -> Tree:
    """Weights in which each Quantized stands for `dtype`, whatever dtype its array had."""

    def leaf(x: object) -> object:
        return dataclasses.replace(x, dtype=dtype) if isinstance(x, Quantized) else x

    return jax.tree.map(leaf, weights, is_leaf=_is_quantized)


def activation_dtype(params: Params) -> np.dtype:
    """The dtype of activations between layers: that of matrices and tables, the plain ones if there are
    any. Norms and biases may be float32 beside them."""
    flat, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=_is_quantized)
    wide = [x for path, x in flat if _name(path) in (*MATRICES, *TABLES)]
    plain = [x for x in wide if not isinstance(x, Quantized)]
    return jnp.dtype((plain or wide)[0].dtype)


def key_of(entry: object) -> str:
    """The key of a dict, or the index of a list, in a path of jax.tree_util."""
    return str(getattr(entry, "key", entry))


def _is_quantized(node: object) -> bool:
    return isinstance(node, Quantized)


def _name(path: KeyPath) -> str:
    return key_of(path[-1])
