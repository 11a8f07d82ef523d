"""Stacked parameters: arrays [layers, ...], through which a step loops; and unrolled ones: a tree of
arrays for every layer, the default on TPUs, with which a step of few tokens has each layer written out.

The TPU compiler copies an array into on-chip memory before it is needed, and so streams the weights of
the next matmuls from HBM while this layer communicates; it does not do so with a slice of a stacked
array. Steps that are written out are faster, the more the fewer tokens there are, and take seconds per
layer to compile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from collective_einsum import Quantized

# A matrix or a bias.
Weight = jax.Array | Quantized
# A pytree of arrays, `Quantized` or ShapeDtypeStructs, see `params`; or one of their partition specs.
Params = dict[str, Any]
# The parameters of one layer, by name: a `Weight`, or a dict with the arrays of a norm.
LayerWeights = Mapping[str, Any]
Tree = TypeVar("Tree")


class InStack(NamedTuple):
    """One layer's array of a stack, of which slices are taken where they are used: the compiler would
    copy all of it, if several dots had slices of it, or dots in a loop.

    Attributes:
      stack: [layers, ...].
      layer: the index.
    """

    stack: Weight
    layer: jax.Array


def one_of(w: Weight | InStack, dim: int, index: jax.Array, count: int) -> Weight:
    """One of `count` slices of a dimension of a layer's array; of a Quantized, its scales too, or the
    scales that all share."""

    def cut(x: jax.Array, *layer: jax.Array) -> jax.Array:
        sizes = list(x.shape[len(layer) :])
        starts = [jnp.int32(0)] * len(sizes)
        if sizes[dim] > 1:
            sizes[dim] //= count
            starts[dim] = index * sizes[dim]
        own = lax.dynamic_slice(x, (*layer, *starts), (*(1 for _ in layer), *sizes))
        return own.reshape(sizes)

    if isinstance(w, InStack):
        return jax.tree.map(lambda x: cut(x, w.layer), w.stack)
    return jax.tree.map(cut, w)


def is_unrolled(params: Params) -> bool:
    """Whether each layer has arrays of its own."""
    return not isinstance(params.get("blocks", {}), Mapping)


def at(tree: Tree, layer: int) -> Tree:
    """A tree of arrays [layers, ...] at one layer."""
    return jax.tree.map(lambda x: x[layer], tree)


def layer_of(blocks: Params | Sequence[Params], layer: int) -> Params:
    """The parameters of one layer, from stacked or unrolled ones."""
    return at(blocks, layer) if isinstance(blocks, Mapping) else blocks[layer]


def unroll(params: Params) -> Params:
    """Unrolled parameters from stacked ones: "blocks" becomes a list with a tree of arrays per layer.

    Shardings are kept. The stacked arrays stay in memory until they are deleted: for a model that fills
    the chips, use `layouts.init(..., unrolled=True)` or load a checkpoint that way.

    Raises:
      ValueError: `params` has no "blocks".
    """
    if not isinstance(params, Mapping) or "blocks" not in params:
        raise ValueError("unroll takes all parameters, {'embedding': ..., 'blocks': ..., ...}")
    blocks = params["blocks"]
    if not isinstance(blocks, Mapping):
        return params
    count = jax.tree.leaves(blocks)[0].shape[0]

    def slice_of(layer: int) -> Params:
        # A static slice: an index would be copied to the devices.
        return jax.tree.map(lambda x: lax.index_in_dim(x, layer, 0, keepdims=False), blocks)

    # Arrays of their own: H8 in docs/compiler.md.
    return params | {"blocks": [slice_of(layer) for layer in range(count)]}
