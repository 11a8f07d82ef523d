"""Parameters and caches, each shard made on the chip that keeps it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.stages import Wrapped
from jax.typing import DTypeLike

from collective_einsum.chips import Chip

from ..arguments import as_dtype, as_flag, as_key, as_size
from ..layers.kv_cache import empty_cache, with_stored_batch
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import check_devices, check_mesh
from ..models import params
from ..models.cache import Cache, Prefix
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..models.params import Params
from ..partitionings.cache_specs import cache_specs
from ..partitionings.padded_sizes import padded_batch
from ..partitionings.param_specs import param_specs, shardings
from ..partitionings.partitioning import PlanLike, as_plan
from ..planning.defaults import as_unrolled, default_decode
from . import step_checks as checks


def init(
    config: ModelConfig | str,
    mesh: MeshLike,
    key: jax.Array,
    dtype: DTypeLike = jnp.bfloat16,
    *,
    weights: str = "plain",
    unrolled: bool | None = None,
) -> Params:
    """Random parameters, each shard made on the chip that keeps it.

    Args:
      config: the model, or its name, such as "palm-8b".
      mesh: with axes x, y and z.
      key: a `jax.random.key`; the same numbers come out on every mesh.
      dtype: of every array; floating.
      weights: "plain", or "int8" for matrices and tables as Quantized that stand for `dtype`.
      unrolled: each layer's parameters are arrays of their own, for faster steps on TPUs, where this is
        the default; steps of few tokens are then written out layer by layer, and take longer to
        compile. The numbers are the same.

    Raises:
      ValueError: the mesh does not divide the model, or `weights` is another word.
    """
    config = as_config(config)
    checks.check_weights(weights, ("plain", "int8"))
    checks.check_mesh_for(config, mesh)
    root = checks.brought(as_key(key), mesh)
    options = (config, mesh, as_dtype(dtype, 'weights="int8"'), weights == "int8")
    if not as_unrolled(unrolled, mesh):
        return _initializer(params.init, *options)(root)
    blocks = [
        _initializer(params.init_layer, *options)(*checks.brought((root, np.int32(layer)), mesh))
        for layer in range(config.layers)
    ]
    return _initializer(params.init_ends, *options)(root) | {"blocks": blocks}


@functools.lru_cache(maxsize=64)
def _initializer(
    draw: Callable[..., Params], config: ModelConfig, mesh: MeshLike, dtype: DTypeLike, int8: bool
) -> Wrapped:
    """`draw`, one of those in `params`, jitted."""

    def make(*numbers: jax.Array) -> Params:
        made = draw(*numbers, config, dtype)
        return params.quantize(made) if int8 else made

    unrolled = draw is not params.init
    specs = param_specs(
        config, mesh, params.params_shapes(config, dtype, int8=int8, unrolled=unrolled)
    )
    if draw is params.init_layer:
        specs = specs["blocks"][0]
    elif unrolled:
        del specs["blocks"]
    return jax.jit(make, out_shardings=shardings(mesh, specs))


def init_cache(
    config: ModelConfig | str,
    mesh: MeshLike,
    batch: int,
    max_length: int,
    *,
    plan: PlanLike | None = None,
    dtype: DTypeLike = jnp.bfloat16,
    int8: bool = False,
    prefix: Prefix | None = None,
    chip: Chip | str | None = None,
) -> Cache:
    """An empty cache, each shard made on the chip that keeps it.

    Args:
      config, mesh: as `init`.
      batch: sequences.
      max_length: positions for each, after the prefix.
      plan: whose attention layout shards it; the default one for decoding unless given.
      dtype: of keys and values.
      int8: store them as int8, with a scale for each position and head.
      prefix: what all sequences begin with, from `shared_prefix`; stored once, not once for each.
      chip: for which the default plan is chosen, itself or its name; by default that of the mesh.

    Raises:
      ValueError: sizes do not fit the mesh, the layout or each other.
    """
    config, dtype, int8 = as_config(config), as_dtype(dtype, "int8=True"), as_flag("int8", int8)
    batch, max_length = (
        as_size(name, size, "a cache")
        for name, size in (("batch", batch), ("max_length", max_length))
    )
    checks.check_prefix_of(prefix, config, mesh)
    checks.check_room(config, max_length, prefix)
    check_devices(mesh, "to put a cache on")
    plan = (
        default_decode(config, mesh, batch, max_length, chip=chip)
        if plan is None
        else as_plan(plan)
    )
    stored = padded_batch(batch, config, plan, check_mesh(mesh))

    def make(prefix: Prefix | None) -> Cache:
        return empty_cache(
            config, batch, max_length, dtype, int8=int8, prefix=prefix, stored_batch=stored
        )

    specs = cache_specs(config, mesh, plan, jax.eval_shape(make, prefix))
    return jax.jit(make, out_shardings=shardings(mesh, specs))(prefix)


def shared_prefix(cache: Cache) -> Prefix:
    """The entries of a cache of one sequence, for many sequences to begin with.

    Layers with a window keep those of its last positions, in order.

    Args:
      cache: as `prefill` left it: one sequence, full to its last position.

    Raises:
      ValueError: there are several sequences, room is left, or it begins with a prefix itself.
    """
    checks.check_prefix(cache)
    cache = with_stored_batch(cache, 1)
    length = cache.max_length

    def one(x: jax.Array, size: int) -> jax.Array:
        x = lax.index_in_dim(x, 0, 1, False)
        return x if size >= length else jnp.roll(x, -(length % size), axis=2)

    (k, v), *shorter = [
        jax.tree.map(functools.partial(one, size=pair[0].size), pair) for pair in cache.stores
    ]
    return Prefix(k, v, length, tuple(shorter))


def move_cache(config: ModelConfig | str, mesh: MeshLike, cache: Cache, plan: PlanLike) -> Cache:
    """The cache, sharded as another plan's attention layout says.

    Args:
      config, mesh: as `init`.
      cache: any.
      plan: as `prefill`.

    Raises:
      ValueError: the plan cannot shard the model's heads over the mesh.
    """
    config, plan = as_config(config), as_plan(plan)
    checks.check_cache(cache)
    check_devices(mesh, "to put a cache on")
    stored = padded_batch(cache.batch, config, plan, check_mesh(mesh))
    cache = with_stored_batch(cache, stored)
    return jax.device_put(cache, shardings(mesh, cache_specs(config, mesh, plan, cache)))
