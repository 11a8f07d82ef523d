"""A step's layers one after the other, in a loop or each written out, with what they add to the cache.

Layers that read the cache read it as it was, and append to it; those of an empty cache fill it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import KeyPath

from ..layers.block import block
from ..layers.kv_cache import append, as_stored, fill
from ..layers.layer_context import Past, Step
from ..mesh import axis_collectives as ax
from ..models.cache import Cache, Pair
from ..models.params import Params
from ..partitionings.cache_stores import Places, Store, cache_stores, index_in, store_of
from ..partitionings.feedforward_layout import boundary_shard, boundary_slice
from ..partitionings.weight_gathered import WeightGathered
from .layer_arrays import Apart, LayerArrays, Stacked, are_alike, indexed

Carry = TypeVar("Carry")
Made = TypeVar("Made")
# Activations; for each store, keys and values, and the index of the next of its layers.
Filled = tuple[jax.Array, list[Pair], list[jax.Array]]


def vectors_cut(blocks: Params, step: Step) -> Params:
    """The blocks, with this chip's slice only of vectors [layers, E] or [E], and of routers: sliced
    here, not in each layer."""
    size = step.config.d_model

    def cut(path: KeyPath, x: jax.Array) -> jax.Array:
        names = {str(getattr(entry, "key", entry)) for entry in path}
        if names & {*step.config.norm_names, "b_o", "b_out"}:
            return boundary_shard(step.feedforward, x, size)
        if names & {"w_router", "w_shared_router"}:
            return boundary_slice(step.feedforward, x, size)
        return x

    return jax.tree_util.tree_map_with_path(cut, blocks)


def append_layers(
    x: jax.Array,
    blocks: Any,
    cache: Cache,
    counts: jax.Array,
    steps: Sequence[Step],
    *,
    copied: bool,
) -> tuple[jax.Array, list[Pair]]:
    """All blocks, reading the cache as it was; what is new is written once they are done.

    `steps` has one for each layer. Stacked blocks run in a loop; those of a list are written out, or
    run in a loop too if they may be `copied`, and are alike.

    Returns:
      The last layer's results, and the keys and values of each store.
    """
    step = steps[0]
    own = ax.own_block(counts, step.placement.batch_axes, 0)
    stores = cache_stores(step.config, cache.max_length)
    places = [store.places for store in stores]

    def one(
        x: jax.Array, layer: tuple[Params, Past, Past | None], step: Step = step
    ) -> tuple[jax.Array, Past]:
        weights, past, prefix = layer
        return block(x, weights, step, past, prefix)

    def write(pair: Pair, new: Past, store: Store, own: jax.Array) -> Pair:
        starts, rolls = step.lengths, store.rolls
        (k, v), (new_k, new_v) = pair, new
        return (
            append(k, new_k, starts, own, rolls=rolls),
            append(v, new_v, starts, own, rolls=rolls),
        )

    held, prefix = list(cache.stores), _prefix(cache, step)
    looped = _looped_blocks(blocks, step, copied=copied)
    if looped is not None:
        layers = (looped, Stacked(held, places), prefix)
        x, stacks = _scan(one, x, layers, steps, places)
        return x, [write(*each, own) for each in zip(held, stacks, stores, strict=True)]
    made: list[list[Past]] = [[] for _ in stores]
    for layer, weights in enumerate(blocks):
        store, index = index_in(places, layer)
        past = _layer_of_cache(held[store], index)
        x, new = one(x, (weights, past, prefix.at(layer)), steps[layer])
        made[store].append(new)
    stacks = [jax.tree.map(lambda *array: jnp.stack(array), *new) for new in made]
    if held[0][0].values.shape[2] > 1:
        # Of several heads, the compiler copies the whole cache, unless what is written comes after the
        # last read: 64 sequences of Llama 3.1 70B on v5e:4x4 with an int8 cache take 340 us a layer,
        # and 273 so; 128 take 637, and 448 (libtpu 0.0.50.1).
        x, own = lax.optimization_barrier((x, own))
    held = [write(*each, own) for each in zip(held, stacks, stores, strict=True)]
    return x, held


def _scan(
    one: Callable[[Carry, Any, Step], tuple[Carry, Made]],
    carry: Carry,
    layers: Sequence[LayerArrays],
    steps: Sequence[Step],
    stores: Sequence[Places],
) -> tuple[Carry, list[Made]]:
    """A loop over layers: over groups of as many as have kinds of attention of their own, and
    then those that are left.

    Args:
      one: a layer, (carry, its arrays of each of `layers`, its step) to (carry, what it makes).
      carry: of the first layer.
      layers: arrays of all layers.
      steps: of each layer.
      stores: for each store of what the layers make, the places of its layers among those that repeat.

    Returns:
      The last carry, and what the layers of each store make, [layers, ...].
    """
    period, count = len(steps[0].config.kinds), len(steps)
    sliced = [of.trees[0] for of in layers if isinstance(of, Stacked) and not of.in_stack]
    if period == 1 and len(sliced) == len(layers):
        arrays = tuple(sliced)
        carry, new = lax.scan(lambda carry, layer: one(carry, layer, steps[0]), carry, arrays)
        return carry, [new]

    def some(
        carry: Carry, places: int, index: Callable[[int, int], jax.Array]
    ) -> tuple[Carry, list[list[Made]]]:
        made: list[list[Made]] = [[] for _ in stores]
        for place in range(places):
            arrays = tuple(of.layer(place, index) for of in layers)
            carry, new = one(carry, arrays, steps[place])
            made[store_of(stores, place)].append(new)
        return carry, made

    def group(carry: Carry, firsts: Mapping[int, jax.Array]) -> tuple[Carry, list[list[Made]]]:
        index = functools.cache(lambda stride, rank: firsts[stride] + rank)
        return some(carry, period, index)

    groups = count // period
    strides = {len(places) for of in layers for places in of.places}
    firsts = {n: n * jnp.arange(groups, dtype=jnp.int32) for n in sorted(strides)}
    carry, made = lax.scan(group, carry, firsts)
    index = functools.cache(
        lambda stride, rank: lax.optimization_barrier(jnp.int32(groups * stride + rank))
    )
    carry, left = some(carry, count - groups * period, index)
    return carry, [_joined(*parts) for parts in zip(made, left, strict=True)]


def _joined(made: Sequence[Made], left: Sequence[Made]) -> Made:
    """What each place of a store makes in all groups, [groups, ...], and the layers that are left, as
    [layers, ...]."""
    grouped = jax.tree.map(lambda *x: jnp.stack(x, 1).reshape(-1, *x[0].shape[1:]), *made)
    left = [jax.tree.map(lambda x: x[None], new) for new in left]
    return jax.tree.map(lambda *x: jnp.concatenate(x), grouped, *left)


def _layer_of_cache(past: Past, layer: int) -> Past:
    """One layer of keys and values, which dots slice where they lie: H3 in docs/compiler.md."""
    index = lax.optimization_barrier(jnp.int32(layer))

    def one(array: jax.Array) -> jax.Array:
        return indexed(as_stored(array), index)

    return jax.tree.map(one, past)


def fill_layers(
    x: jax.Array,
    blocks: Any,
    cache: Cache,
    counts: jax.Array,
    steps: Sequence[Step],
    *,
    copied: bool,
) -> tuple[jax.Array, list[Pair]]:
    """All blocks on an empty cache, each layer's part written as it is made; arguments and results as
    `append_layers`."""
    step = steps[0]
    stores = cache_stores(step.config, cache.max_length)
    places = [store.places for store in stores]
    own = None
    if any(store.rolls for store in stores):
        own = ax.own_block(counts, step.placement.batch_axes, 0)

    def one(
        carry: Filled, layer: tuple[Params, Past | None], step: Step = step
    ) -> tuple[Filled, None]:
        x, held, indices = carry
        weights, prefix = layer
        x, (new_k, new_v) = block(x, weights, step, None, prefix)
        store = store_of(places, step.place)
        (k, v), index = held[store], indices[store]
        kept = own if stores[store].rolls else None
        k = fill(k, k.like(new_k.values), index, kept)
        v = fill(v, v.like(new_v.values), index, kept)
        held, indices = list(held), list(indices)
        held[store], indices[store] = (k, v), index + 1
        return (x, held, indices), None

    carry: Filled = (x, list(cache.stores), [jnp.int32(0)] * len(stores))
    prefix = _prefix(cache, step)
    looped = _looped_blocks(blocks, step, copied=copied)
    if looped is not None:
        carry, _ = _scan(one, carry, (looped, prefix), steps, places)
    else:
        for layer, weights in enumerate(blocks):
            carry, _ = one(carry, (weights, prefix.at(layer)), steps[layer])
    return carry[0], carry[1]


def _looped_blocks(blocks: Any, step: Step, *, copied: bool) -> LayerArrays | None:
    """The blocks for a loop over them; None if each is to be written out."""
    if isinstance(blocks, Mapping):
        return _stacked_blocks(blocks, step)
    return Apart(blocks, len(step.config.kinds)) if copied and are_alike(blocks) else None


def _stacked_blocks(blocks: Mapping[str, Any], step: Step) -> Stacked:
    """The blocks; matrices of stationary experts, which are multiplied in a loop, as `InStack`."""
    stacked = _of_all(blocks, step)
    if step.schedules.rooms is None or isinstance(step.feedforward, WeightGathered):
        return stacked
    return dataclasses.replace(stacked, in_stack=(*step.config.input_names, "w_out"))


def _of_all(arrays: Any, step: Step) -> Stacked:
    """Arrays [layers, ...] of all layers in one."""
    return Stacked([arrays], [tuple(range(len(step.config.kinds)))])


def _prefix(cache: Cache, step: Step) -> Stacked:
    """The keys and values of the shared prefix; None for each layer if there is none."""
    if cache.prefix is None:
        return _of_all(None, step)
    stores = cache_stores(step.config, cache.prefix.length)
    return Stacked(cache.prefix.stores, [store.places for store in stores])
