"""A step's layers one after the other, stacked in a loop or each written out, with what they add to the
cache.

Layers that read the cache read it as it was, and append to it; those of an empty cache fill it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import KeyPath

from .. import tuning
from ..layers.block import block
from ..layers.kv_cache import append, as_stored, fill
from ..layers.layer_context import Past, Step
from ..mesh import axis_collectives as ax
from ..models.cache import Cache, Entries
from ..models.params import Params
from ..models.stacked_params import at
from ..partitionings.feedforward_layout import boundary_shard, boundary_slice

Carry = TypeVar("Carry")
Made = TypeVar("Made")
Layers = TypeVar("Layers")
# Activations, the keys and values of all layers, and the number of the next layer.
Filled = tuple[jax.Array, Entries, Entries, jax.Array]


def vectors_cut(blocks: Params, step: Step) -> Params:
    """The blocks, with this chip's slice only of vectors [layers, E] or [E], and of routers: sliced
    here, not in each layer."""
    size = step.config.d_model

    def cut(path: KeyPath, x: jax.Array) -> jax.Array:
        names = {str(getattr(entry, "key", entry)) for entry in path}
        if names & {*step.config.norm_names, "b_o", "b_out"}:
            return boundary_shard(step.feedforward, x, size)
        if "w_router" in names:
            return boundary_slice(step.feedforward, x, size)
        return x

    return jax.tree_util.tree_map_with_path(cut, blocks)


def append_layers(
    x: jax.Array, blocks: Params, cache: Cache, counts: jax.Array, steps: Sequence[Step]
) -> tuple[jax.Array, Entries, Entries]:
    """All blocks, reading the cache as it was; what is new is written once they are done.

    `steps` has one for each layer.
    """
    step = steps[0]
    own = ax.own_block(counts, step.placement.batch_axes, 0)

    def one(
        x: jax.Array, layer: tuple[Params, Past, Past | None], step: Step = step
    ) -> tuple[jax.Array, Past]:
        weights, past, prefix = layer
        return block(x, weights, step, past, prefix)

    def write(entries: Entries, new: Entries, layer: int = 0) -> Entries:
        return append(entries, new, step.lengths, own, layer)

    k, v, prefix = cache.k, cache.v, _prefix(cache)
    if isinstance(blocks, Mapping):
        x, (new_k, new_v) = _scan(one, x, (blocks, (k, v), prefix), steps)
        return x, write(k, new_k), write(v, new_v)
    made, early = [], _writes_early(k, v)
    for layer, weights in enumerate(blocks):
        past = _layer_of_cache((k, v), layer)
        x, new = one(x, (weights, past, at(prefix, layer)), steps[layer])
        made.append(new)
        if early:
            new = jax.tree.map(lambda array: array[None], new)
            x, k, v, (new_k, new_v) = lax.optimization_barrier((x, k, v, new))
            k, v = write(k, new_k, layer), write(v, new_v, layer)
    if not early:
        new_k, new_v = jax.tree.map(lambda *array: jnp.stack(array), *made)
        k, v = write(k, new_k), write(v, new_v)
    return x, k, v


def _scan(
    one: Callable[[Carry, Layers, Step], tuple[Carry, Made]],
    carry: Carry,
    layers: Layers,
    steps: Sequence[Step],
) -> tuple[Carry, Made]:
    """A loop over stacked layers: over groups of as many as have kinds of attention of their own, and
    then those that are left.

    Args:
      one: a layer, (carry, arrays of one layer, its step) to (carry, what it makes).
      carry: of the first layer.
      layers: arrays [layers, ...].
      steps: of each layer.

    Returns:
      The last carry, and what the layers make, [layers, ...].
    """
    period, count = len(steps[0].config.kinds), len(steps)
    if period == 1:
        return lax.scan(lambda carry, layer: one(carry, layer, steps[0]), carry, layers)

    def group(carry: Carry, first: jax.Array) -> tuple[Carry, list[Made]]:
        made = []
        for place in range(period):
            layer = jax.tree.map(lambda x, at=first + place: _indexed(x, at), layers)
            carry, new = one(carry, layer, steps[place])
            made.append(new)
        return carry, made

    groups = count // period
    carry, made = lax.scan(group, carry, period * jnp.arange(groups, dtype=jnp.int32))
    # [groups, ...] of each place, to [groups * period, ...].
    made = jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), *made)
    left = []
    for place in range(count - groups * period):
        index = lax.optimization_barrier(jnp.int32(groups * period + place))
        layer = jax.tree.map(lambda x, at=index: _indexed(x, at), layers)
        carry, new = one(carry, layer, steps[place])
        left.append(jax.tree.map(lambda x: x[None], new))
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x), made, *left)


def _indexed(x: jax.Array, index: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _layer_of_cache(past: Past, layer: int) -> Past:
    """One layer of keys and values, which dots slice where they lie: H3 in docs/compiler.md."""
    index = lax.optimization_barrier(jnp.int32(layer))

    def one(array: jax.Array) -> jax.Array:
        return _indexed(as_stored(array), index)

    return jax.tree.map(one, past)


def _writes_early(k: Entries, v: Entries) -> bool:
    """Whether an unrolled step writes each layer's new entries before the next layer."""
    nbytes = max(array.nbytes for array in jax.tree.leaves((k, v)))
    return nbytes < tuning.ON_CHIP_BYTES and k.values.shape[1] <= tuning.EARLY_SEQUENCES


def fill_layers(
    x: jax.Array, blocks: Params, cache: Cache, counts: jax.Array, steps: Sequence[Step]
) -> tuple[jax.Array, Entries, Entries]:
    """All blocks on an empty cache, each layer's part written as it is made; `steps` as
    `append_layers`."""
    del counts

    def one(
        carry: Filled, layer: tuple[Params, Past | None], step: Step = steps[0]
    ) -> tuple[Filled, None]:
        x, k, v, index = carry
        weights, prefix = layer
        x, (new_k, new_v) = block(x, weights, step, None, prefix)
        k, v = fill(k, k.like(new_k.values), index), fill(v, v.like(new_v.values), index)
        return (x, k, v, index + 1), None

    carry, prefix = (x, cache.k, cache.v, jnp.int32(0)), _prefix(cache)
    if isinstance(blocks, Mapping):
        carry, _ = _scan(one, carry, (blocks, prefix), steps)
    else:
        for layer, weights in enumerate(blocks):
            carry, _ = one(carry, (weights, at(prefix, layer)), steps[layer])
    x, k, v, _ = carry
    return x, k, v


def _prefix(cache: Cache) -> Past | None:
    return None if cache.prefix is None else (cache.prefix.k, cache.prefix.v)
