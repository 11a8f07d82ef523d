"""Checks of a layer that is called by itself, which refuse in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from collective_einsum.text import shown

from ..arguments import as_integers
from ..models.cache import Entries
from ..models.config import ModelConfig
from ..models.param_checks import check_layer_weights
from ..partitionings.param_specs import WEIGHT_SPECS

ATTENTION = ("w_q", "w_kv", "w_o", "b_q", "b_kv", "b_o", "norm_q", "norm_k", "sinks")
FEEDFORWARD = tuple(WEIGHT_SPECS)
PARALLEL = ("norm", *ATTENTION, *FEEDFORWARD)
SERIAL = (*PARALLEL, "norm_ffn", "norm_after", "norm_after_ffn")


def check_layer(
    config: ModelConfig, x: jax.Array, weights: object, names: Sequence[str], *, is_global: bool
) -> None:
    """Refuses activations and weights that are not those of a layer.

    Args:
      config: the model.
      x: activations.
      weights: of one layer.
      names: the weights that the layer uses, as far as the config has them.
      is_global: whether these are global arrays, whose sizes are known, rather than shards.

    Raises:
      ValueError: something is missing, or has another shape.
    """
    shape = tuple(jnp.shape(x))
    if len(shape) != 3 or (is_global and shape[2] != config.d_model):
        raise ValueError(
            f"x of shape {shape} must be [batch, length, d_model], of {config.name} with "
            f"d_model={config.d_model}"
        )
    if not isinstance(weights, Mapping):
        hint = "; give one of them" if isinstance(weights, list | tuple) else ""
        raise ValueError(
            f"weights must be those of one layer, a dict with {', '.join(names)}, got "
            f"{type(weights).__name__}{hint}"
        )
    if "blocks" in weights:
        raise ValueError(
            "weights are those of a whole model; give those of one layer, such as "
            "jax.tree.map(lambda w: w[0], params['blocks']) of stacked ones"
        )
    check_layer_weights(weights, config, names, is_global=is_global)


def check_past(
    past: object, prefix: object, lengths: ArrayLike | Sequence[int] | None, batch: int | None
) -> jax.Array | None:
    """Refuses keys and values that are not a layer's, and lengths that are not the batch's.

    Args:
      past, prefix, lengths: as `attention`.
      batch: sequences on all chips, if their number is known; else None.

    Returns:
      lengths as an array, or None.

    Raises:
      ValueError: one of them is something else, or past has no lengths.
    """
    for name, given, sizes in (("past", past, "[B, K, S, D]"), ("prefix", prefix, "[K, P, D]")):
        if given is not None and not _is_past(given):
            raise ValueError(
                f"{name}={shown(given)} must be the keys and values of one layer, a pair of "
                f"layouts.Entries(array {sizes})"
            )
    if past is not None and lengths is None:
        raise ValueError("past is given without lengths; give lengths=, how many positions count")
    if lengths is None:
        return None
    lengths = jnp.asarray(as_integers(lengths, "lengths"), jnp.int32)
    if lengths.ndim != 1 or (batch is not None and lengths.shape != (batch,)):
        raise ValueError(
            f"lengths of shape {lengths.shape} must be ({batch or 'batch'},), one per sequence"
        )
    return lengths


def _is_past(given: object) -> bool:
    """Whether it is the keys and the values of one layer."""
    pair = given if isinstance(given, tuple | list) and len(given) == 2 else (None, None)
    return all(isinstance(entries, Entries) for entries in pair)
