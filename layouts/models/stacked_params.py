"""The layers' parameters in stacked arrays, through which a step loops, or each layer's in arrays of
its own, with a step that is written out layer by layer.

The TPU compiler copies whole arrays into on-chip memory before they are needed, and so streams the
weights of the next matmuls from HBM while this layer communicates; it does not do that with a slice
of a stacked array. What it gains is a part of each step, the more the fewer rows there are; what it
costs is a program, and seconds of compiling, for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

Params = dict[str, Any]


def is_unrolled(params: Mapping[str, Any]) -> bool:
    """Whether each layer has arrays of its own."""
    return not isinstance(params.get("blocks", {}), Mapping)


def at(tree: Any, layer: int) -> Any:
    """One layer's part of a tree of arrays [layers, ...]."""
    return jax.tree.map(lambda x: x[layer], tree)


def layer_of(blocks: Any, layer: int) -> Any:
    """The parameters of one layer, stacked or not."""
    return at(blocks, layer) if isinstance(blocks, Mapping) else blocks[layer]


def unroll(params: Params) -> Params:
    """Parameters whose "blocks" are a list with a tree of arrays for each layer, made of stacked ones.

    Shardings are kept. Both are there until the stacked ones are let go: for a model that fills the
    chips, use `layouts.init(..., unrolled=True)` or load a checkpoint that way.

    Raises:
      ValueError: there are no blocks.
    """
    if not isinstance(params, Mapping) or "blocks" not in params:
        raise ValueError("unroll takes all parameters, {'embedding': ..., 'blocks': ..., ...}")
    blocks = params["blocks"]
    if not isinstance(blocks, Mapping):
        return params
    count = jax.tree.leaves(blocks)[0].shape[0]

    def cut(layer: int) -> Any:
        # A slice that is known, not an index brought to the devices.
        return jax.tree.map(lambda x: lax.index_in_dim(x, layer, 0, keepdims=False), blocks)

    return params | {"blocks": [cut(layer) for layer in range(count)]}
