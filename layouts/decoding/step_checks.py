"""Checks of a step before it runs, which refuse in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from collective_einsum.text import did_you_mean, shown

from ..arguments import as_integers, values_of
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import check_devices, check_mesh
from ..models.cache import Cache, Pair, Prefix
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..models.param_checks import check_params
from ..models.params import Params
from ..models.stacked_params import Tree
from ..partitionings.cache_stores import Store, cache_stores
from ..partitionings.partitioning import check_model

if TYPE_CHECKING:
    from .compiled_step import Program

Array = jax.Array | np.ndarray


def check_weights(weights: str, words: Sequence[str]) -> None:
    """Refuses an unknown kind of weights.

    Raises:
      ValueError: it is none of `words`.
    """
    if weights not in words:
        raise ValueError(
            f"weights={weights!r} must be one of {', '.join(map(repr, words))}"
            f"{did_you_mean(weights, words)}"
        )


def check_mesh_for(config: ModelConfig, mesh: MeshLike) -> None:
    """Refuses a mesh that cannot hold the model under any layout.

    Raises:
      ValueError: other axes, or sizes that do not divide.
    """
    check_model(config, check_mesh(mesh))


def check_prefix(cache: Cache) -> None:
    """Refuses a cache that is not one sequence, full to its last position.

    Raises:
      ValueError: it is none, or there are several sequences, room left, or a prefix of its own.
    """
    check_cache(cache)
    if cache.batch != 1 or cache.prefix is not None:
        raise ValueError(
            f"a shared prefix is one sequence without a prefix of its own, got a cache of "
            f"{cache.batch} with a prefix of {cache.prefix_length}; prefill a cache of batch 1"
        )
    length = values_of(cache.lengths)
    if length is not None and length.tolist() != [cache.max_length]:
        raise ValueError(
            f"a shared prefix must fill its cache, but it has {length.tolist()[0]} of "
            f"{cache.max_length} positions; make that cache with max_length={int(length.max())}"
        )


def as_given(config: ModelConfig | str, mesh: MeshLike, params: Params) -> ModelConfig:
    """The config, or that of the named model, of which `params` are, on the mesh.

    Raises:
      ValueError: there is no such model, the mesh is none or has other axes, or params are not those
        of the model, or elsewhere.
    """
    config = as_config(config)
    check_mesh(mesh)
    check_params(params, config)
    _check_held(
        "params",
        params,
        mesh,
        "make them with layouts.init",
        "write params = jax.device_put(params, layouts.shardings(mesh, layouts.param_specs(config, "
        "mesh, params)))",
    )
    return config


def check_cache(cache: object, mesh: MeshLike | None = None) -> None:
    """Refuses what is no cache, or one that has been donated or is elsewhere.

    Raises:
      ValueError: it is.
    """
    if not isinstance(cache, Cache):
        hint = "make one with layouts.init_cache"
        if isinstance(cache, tuple) and any(isinstance(item, Cache) for item in cache):
            hint = "steps return (logits, cache); give the second"
        raise ValueError(f"cache must be a layouts.Cache, got {type(cache).__name__}; {hint}")
    _check_held(
        "the cache",
        cache,
        mesh,
        "prefill and decode_step take the cache that they are given, and return the one to use "
        "next: logits, cache = layouts.decode_step(config, mesh, params, cache, tokens)",
        "make it with layouts.init_cache, or move it with layouts.move_cache(config, mesh, cache, "
        "plan)",
    )


def check_prefix_of(prefix: object, config: ModelConfig, mesh: MeshLike) -> None:
    """Refuses what is no prefix, or that of another model, or one that is elsewhere.

    Raises:
      ValueError: it is.
    """
    if prefix is None:
        return
    if not isinstance(prefix, Prefix):
        raise ValueError(
            f"prefix must be a layouts.Prefix, got {type(prefix).__name__}; make one with "
            "layouts.shared_prefix(cache), of a cache of one sequence that prefill has filled"
        )
    _check_held(
        "the prefix",
        prefix,
        mesh,
        "make it again with layouts.shared_prefix",
        "make it with layouts.shared_prefix of a cache on this mesh",
    )
    stores, pairs = cache_stores(config, prefix.length), prefix.stores
    _check_stores("the prefix", pairs, stores, config)
    for (k, _), store in zip(pairs, stores, strict=True):
        shape = tuple(k.values.shape)
        positions = (store.positions,) if store.rolls else shape[2:3]
        expected = (store.layers, config.stored_kv_heads, *positions, config.d_head)
        if shape != expected:
            raise ValueError(
                f"the prefix has shape {shape}, but {config.name} needs {expected} (layers, key-value "
                "heads, positions, d_head); make it with a cache of this model"
            )


def check_room(config: ModelConfig, max_length: int, prefix: Prefix | None) -> None:
    """Refuses a cache with room for more positions than the model has, and a prefix whose keys are
    rotated otherwise than those of such a cache.

    Raises:
      ValueError: it is one.
    """
    before = 0 if prefix is None else prefix.length
    own = config.for_room(before + max_length)
    if prefix is not None and config.for_room(before) != own:
        raise ValueError(
            f"the prefix of {before} positions and a cache with room for {before + max_length} in all "
            f"differ in the rotary embedding of {config.name}, whose scaling depends on the room; put "
            "the prefix at the beginning of each prompt instead"
        )


def _check_held(
    name: str, tree: object, mesh: MeshLike | None, deleted: str, elsewhere: str
) -> None:
    """Refuses arrays that are deleted or donated, or on other devices than the mesh's.

    Args:
      name: of the argument, for the message.
      tree: a pytree of arrays.
      mesh: None for any.
      deleted, elsewhere: what to do about either, for the message.
    """
    for x in jax.tree.leaves(tree):
        if isinstance(x, jax.ShapeDtypeStruct):
            raise ValueError(f"{name} must be arrays, but there are shapes alone among them")
        if not isinstance(x, jax.Array) or isinstance(x, Tracer):
            continue
        if x.is_deleted():
            raise ValueError(f"{name} has arrays that have been deleted or donated: {deleted}")
        if isinstance(mesh, Mesh) and _is_elsewhere(x, mesh):
            ids = sorted(device.id for device in x.sharding.device_set)
            raise ValueError(
                f"{name} has an array of shape {x.shape} on {shown(ids)}, and the mesh has the "
                f"{mesh.size} devices {shown([device.id for device in mesh.devices.flat])}: "
                f"{elsewhere}"
            )


def _is_elsewhere(x: jax.Array, mesh: Mesh) -> bool:
    """Whether an array is bound to other devices than those of a mesh, or in another order."""
    if not x.committed:
        return False
    sharding = x.sharding
    if not isinstance(sharding, NamedSharding):
        return sharding.device_set != set(mesh.devices.flat)
    own = sharding.mesh
    return own != mesh and isinstance(own, Mesh) and list(own.devices.flat) != [*mesh.devices.flat]


def brought(x: Tree, mesh: MeshLike) -> Tree:
    """A pytree of small arrays and numbers, replicated on all devices of the mesh.

    An explicit transfer: jit makes an implicit one, but not under a transfer guard, nor of arrays that
    are committed to other devices. On a mesh of several processes, only the latter are moved.
    """

    def one(x: object) -> object:
        if isinstance(x, Tracer) or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return x
        bound = False
        if isinstance(mesh, Mesh) and isinstance(x, jax.Array):
            bound = _is_elsewhere(x, mesh)
        return x if mesh.is_multi_process and not bound else jax.device_put(x, placed)

    check_devices(mesh, "to put arrays on")
    placed = NamedSharding(mesh, P())
    return jax.tree.map(one, x)


def check_step(
    program: Program, cache: Cache, tokens: Array, counts: ArrayLike | Sequence[int] | None
) -> tuple[Array, Array]:
    """Refuses a step whose arrays do not fit the model, the mesh, the layouts or each other.

    Args:
      tokens: [batch, T], an array of integers.
      counts: [batch], or None for all of them.

    Returns:
      tokens and counts as int32 arrays.

    Raises:
      ValueError: in words.
    """
    config, mesh = program.config, program.mesh
    batch, length = tokens.shape
    _check_cache(cache, config, batch, length)
    counts = np.full((batch,), length, np.int32) if counts is None else counts
    counts = as_integers(counts, "lengths")
    if counts.shape != (batch,):
        raise ValueError(f"lengths of shape {counts.shape} must be ({batch},), one per sequence")
    _check_values(config, cache, tokens, counts, length)
    tokens, counts = brought((tokens.astype(np.int32), counts.astype(np.int32)), mesh)
    return tokens, counts


def _check_cache(cache: Cache, config: ModelConfig, batch: int, length: int) -> None:
    if tuple(np.shape(cache.lengths)) != (batch,):
        raise ValueError(
            f"cache.lengths has shape {tuple(np.shape(cache.lengths))}, but tokens are of {batch} "
            f"sequences; give as many, or make the cache with layouts.init_cache for a batch of {batch}"
        )
    stored, stores = max(batch, cache.stored_batch), cache_stores(config, cache.max_length)
    _check_stores("the cache", cache.stores, stores, config)
    for i, (pair, store) in enumerate(zip(cache.stores, stores, strict=True)):
        positions = store.positions if store.rolls else max(cache.max_length, pair[0].size)
        expected = (store.layers, stored, config.stored_kv_heads, positions, config.d_head)
        for name, entries in zip(("k", "v"), pair, strict=True):
            if tuple(entries.values.shape) != expected:
                where = f"cache.{name}" if i == 0 else f"{name} of cache.shorter[{i - 1}]"
                raise ValueError(
                    f"{where} has shape {tuple(entries.values.shape)}, but {config.name} with "
                    f"{batch} sequences needs {expected} (layers, batch, key-value heads, positions, "
                    "d_head); make it with layouts.init_cache"
                )
    if length > cache.max_length:
        raise ValueError(
            f"{length} tokens do not fit a cache of {cache.max_length} positions; make it with "
            f"max_length={length} or more, or read fewer tokens at a time"
        )


def _check_stores(
    name: str, pairs: Sequence[Pair], stores: Sequence[Store], config: ModelConfig
) -> None:
    """Refuses keys and values of another number of stores.

    Raises:
      ValueError: there are more or fewer.
    """
    if len(pairs) != len(stores):
        sizes = ", ".join(f"{store.layers} layers of {store.positions}" for store in stores)
        raise ValueError(
            f"{name} holds layers of {len(pairs)} numbers of positions, but {config.name} with its "
            f"attention_kinds needs {len(stores)}: {sizes} positions; make it with "
            "layouts.init_cache, for this model"
        )


def _check_values(
    config: ModelConfig, cache: Cache, tokens: Array, counts: Array, length: int
) -> None:
    ids, new, have = values_of(tokens), values_of(counts), values_of(cache.lengths)
    if ids is not None and (ids.min() < 0 or ids.max() >= config.vocab):
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(
            f"token {bad} is not in the vocabulary of {config.name}, 0 to {config.vocab - 1}"
        )
    if new is not None and (new.min() < 0 or new.max() > length):
        raise ValueError(
            f"lengths must be between 0 and {length}, the length of tokens, got {new.tolist()}"
        )
    if new is None or have is None:
        return
    after = have + new
    if after.max() > cache.max_length:
        worst = int(after.argmax())
        raise ValueError(
            f"sequence {worst} has {int(have[worst])} positions in the cache and "
            f"{int(new[worst])} to come, but there is room for {cache.max_length}; make the cache "
            f"with max_length={int(after[worst])} or more"
        )


def has_past(cache: Cache) -> bool:
    """Whether any sequence may have positions in the cache."""
    have = values_of(cache.lengths)
    return have is None or bool(have.any())


def check_prompts(counts: Array) -> None:
    """Refuses empty prompts.

    Raises:
      ValueError: there is one.
    """
    have = values_of(counts)
    if have is not None and have.min() < 1:
        raise ValueError(
            f"prompt {int(have.argmin())} has length {int(have.min())}; a prompt needs a token, "
            "such as that which begins a text"
        )
