"""Refusals of parameters that do not fit a config, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from collective_einsum import Quantized

from .config import ModelConfig
from .params import (
    HEAD_DIM,
    KV_HEAD_DIM,
    MATRICES,
    TABLES,
    activation_dtype,
    key_of,
    params_shapes,
)
from .stacked_params import LayerWeights, Params, Weight, is_unrolled, layer_of

# The arrays of a feedforward, which hold those of all experts.
_OF_EXPERTS = ("w_in", "w_gate", "w_out", "b_in", "b_gate", "b_out")
# Those that only experts have.
_ROUTERS = ("w_router", "b_router", "w_shared_router")


def check_params(params: Params, config: ModelConfig) -> None:
    """Refuses parameters that do not fit `config`.

    Args:
      params: global arrays (or ShapeDtypeStructs).
      config: the model.

    Raises:
      ValueError: an array is missing or unknown, has another shape, is not floating (or Quantized,
        where that is allowed), or has another dtype than the rest; norms and biases may be float32.
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
    _check_paths(given, expected, config)
    dtype = activation_dtype(params)
    for path, x in given.items():
        if tuple(x.shape) != expected[path].shape:
            raise ValueError(
                f"{config.name}: params[{path!r}] has shape {tuple(x.shape)}, but the config needs "
                f"{expected[path].shape}{_reason(path, config)}"
            )
        _check_leaf(path, x, dtype, config)


def check_int8_matrices(config: ModelConfig, weights: LayerWeights) -> None:
    """Refuses matrices that int8 activations cannot be multiplied with as such.

    Args:
      config: the model.
      weights: of a layer, or of several alike.

    Raises:
      ValueError: the config has `int8_activations`, and a matrix is not Quantized.
    """
    plain = [n for n in MATRICES if n in weights and not isinstance(weights[n], Quantized)]
    if config.int8_activations and plain:
        raise ValueError(
            f"{config.name}: int8_activations need int8 matrices, but {plain[0]!r} is not Quantized; "
            'make them with init(..., weights="int8"), load(..., weights="int8") or layouts.quantize, '
            "or replace int8_activations=False"
        )


def _check_paths(
    given: Mapping[str, Weight], expected: Mapping[str, Weight], config: ModelConfig
) -> None:
    """Refuses arrays that are missing or unknown to the config, and leaves that are no arrays."""
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


def _check_containers(params: Params, config: ModelConfig) -> None:
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
    weights: LayerWeights, config: ModelConfig, names: Sequence[str], *, is_global: bool
) -> None:
    """Refuses weights that are not those of one layer of `config`.

    Args:
      weights: of one layer; those that `names` does not list are ignored.
      config: the model.
      names: the weights that the layer uses, as far as the config has them.
      is_global: whether they are global arrays, whose shapes are checked, rather than shards.

    Raises:
      ValueError: an array is missing, one is given that the config does not have, or has another shape.
    """
    check_int8_matrices(config, {name: weights[name] for name in names if name in weights})
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
        if is_global and shape != expected[path].shape:
            stacked = shape[1:] == expected[path].shape
            hint = "; give those of one layer, such as w[0] of stacked ones" if stacked else ""
            raise ValueError(
                f"{config.name}: weights[{path!r}] has shape {shape}, but a layer needs "
                f"{expected[path].shape}{_reason(path, config)}{hint}"
            )


def _check_leaf(path: str, x: Weight, dtype: np.dtype, config: ModelConfig) -> None:
    name = path.rsplit("/", 1)[-1]
    if isinstance(x, Quantized):
        if name not in MATRICES and name not in TABLES:
            raise ValueError(
                f"{config.name}: params[{path!r}] is Quantized; only matrices and tables may be"
            )
        summed = len(x.shape) - (1 if name in TABLES else 2)
        scales = tuple(1 if i == summed else size for i, size in enumerate(x.shape))
        if tuple(x.scale.shape) != scales:
            raise ValueError(
                f"{config.name}: params[{path!r}] has scales of shape {tuple(x.scale.shape)}, but "
                f"one per output channel has {scales}; make it with layouts.quantize"
            )
        # A step makes it stand for the dtype of the other arrays.
        return
    is_vector = name not in MATRICES and name not in TABLES
    if not jnp.issubdtype(x.dtype, jnp.floating) or not (
        x.dtype == dtype or (is_vector and x.dtype == jnp.float32)
    ):
        raise ValueError(
            f"{config.name}: params[{path!r}] is {describe(x)}, but every array must be floating "
            f"and of one dtype, here {dtype}; norms and biases may also be float32"
        )


def _leaves(params: Params) -> dict[str, Weight]:
    flat, _ = jax.tree_util.tree_flatten_with_path(
        params, is_leaf=lambda node: isinstance(node, Quantized)
    )
    return {"/".join(key_of(entry) for entry in path): x for path, x in flat}


def _reason(path: str, config: ModelConfig) -> str:
    """The fields of the config that decide about an array, for a message."""
    name = path.rsplit("/", 1)[-1]
    if name in ("norm_q", "norm_k"):
        return f" (query_key_norm={config.query_key_norm!r}, padded_heads={config.padded_heads})"
    if name == "sinks":
        return f" (sinks={config.sinks}, padded_heads={config.padded_heads})"
    if "embedding_norm" in path:
        return f" (embedding_norm={config.embedding_norm}, norm={config.norm!r})"
    if "/norm" in path and name == "scale":
        return f" (block={config.block!r}, norm_placement={config.norm_placement!r})"
    if config.experts is not None and name in (*_OF_EXPERTS, *_ROUTERS):
        return f" (d_ff={config.d_ff}, experts={config.experts})"
    if name in _ROUTERS or name.startswith("w_shared"):
        return f" (experts={config.experts})"
    if name == "w_gate" or name == "b_gate":
        return f" (gated={config.gated}, biases={config.biases})"
    if name == "unembedding":
        return f" (tied_embedding={config.tied_embedding}, padded_vocab={config.padded_vocab})"
    if name == "positions":
        return f" (learned_positions={config.learned_positions})"
    if name == "embedding":
        return f" (vocab={config.vocab}, padded_vocab={config.padded_vocab})"
    if name == "bias" or name.startswith("b_"):
        return f" (biases={config.biases}, norm={config.norm!r})"
    if name in HEAD_DIM or name in KV_HEAD_DIM:
        return (
            f" (heads={config.heads}, kv_heads={config.kv_heads}, "
            f"padded_heads={config.padded_heads}; layouts.models.pad_heads adds padding)"
        )
    return ""


def describe(x: object) -> str:
    """The dtype and shape of an array, for a message."""
    kind = "Quantized standing for " if isinstance(x, Quantized) else ""
    return f"{kind}{getattr(x, 'dtype', type(x).__name__)} of shape {getattr(x, 'shape', ())}"
