"""The programs of `decode_step` and `prefill` from shapes alone, on any mesh with axes x, y and z."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from collective_einsum.chips import Chip

from ..arguments import as_flag, as_size
from ..layers.kv_cache import empty_cache
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import ScheduleLike, check_devices
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..models.params import params_shapes
from ..models.stacked_params import Tree
from ..partitionings.param_specs import shardings
from ..partitionings.partitioning import PlanLike, as_plan
from ..planning.defaults import as_unrolled, default_decode, default_reader
from . import step_checks as checks
from .compiled_step import Program, load_of
from .decoder import extender

WEIGHTS = ("bf16", "int8")


def lower_decode_step(
    config: ModelConfig | str,
    mesh: MeshLike,
    *,
    batch: int,
    context: int,
    weights: str = "bf16",
    plan: PlanLike | None = None,
    schedule: ScheduleLike = "auto",
    int8_cache: bool = False,
    unrolled: bool | None = None,
    chip: Chip | str | None = None,
) -> jax.stages.Lowered:
    """The program of `decode_step`, lowered for a cache of `context` positions.

    Args:
      config: the model, or its name, such as "palm-8b".
      mesh: with axes x, y and z; its devices need not be there.
      batch: sequences.
      context: positions of the cache, all of which are read.
      weights: "bf16" or "int8"; activations are bfloat16.
      plan: as `prefill`; `default_decode` unless given.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`.
      int8_cache: keys and values are stored as int8.
      unrolled: each layer's parameters are arrays of their own, as `init` makes them for TPUs; by
        default as it does for this chip.
      chip: for which the default plan and schedules are chosen, itself or its name; by default that
        of the mesh.

    Returns:
      The lowered program; `.compile()` compiles it for the mesh's devices.

    Raises:
      ValueError: in words, for sizes that do not fit.
    """
    config = _checked(config, mesh, weights)
    batch = as_size("batch", batch, "a decode step")
    context = as_size("context", context, "a decode step")
    plan = default_decode(config, mesh, batch, context, chip=chip) if plan is None else plan
    return _lower(
        config,
        mesh,
        plan,
        schedule,
        weights,
        batch,
        1,
        context,
        int8_cache,
        unrolled,
        chip,
        reads=True,
    )


def lower_prefill(
    config: ModelConfig | str,
    mesh: MeshLike,
    *,
    batch: int,
    length: int,
    weights: str = "bf16",
    plan: PlanLike | None = None,
    schedule: ScheduleLike = "auto",
    int8_cache: bool = False,
    unrolled: bool | None = None,
    chip: Chip | str | None = None,
) -> jax.stages.Lowered:
    """The program of `prefill`, lowered for prompts that fill a new cache of `length` positions.

    Args:
      length: of the prompts and of the cache.
      plan: as `prefill`; what reads prompts of this size into an empty cache by default, unless given.
      config, mesh, batch, weights, schedule, int8_cache, unrolled, chip: as `lower_decode_step`.

    Returns:
      As `lower_decode_step`.

    Raises:
      ValueError: in words, for sizes that do not fit.
    """
    config = _checked(config, mesh, weights)
    batch, length = as_size("batch", batch, "a prefill"), as_size("length", length, "a prefill")
    if plan is None:
        plan = default_reader(config, mesh, batch, length, length, chip=chip)
    given = (weights, batch, length, length, int8_cache, unrolled, chip)
    return _lower(config, mesh, plan, schedule, *given, reads=False)


def _checked(config: ModelConfig | str, mesh: MeshLike, weights: str) -> ModelConfig:
    """The config, or that of the named model."""
    config = as_config(config)
    checks.check_weights(weights, WEIGHTS)
    checks.check_mesh_for(config, mesh)
    check_devices(mesh, "to lower for")
    return config


def _lower(
    config: ModelConfig,
    mesh: MeshLike,
    plan: PlanLike,
    schedule: ScheduleLike,
    weights: str,
    batch: int,
    new: int,
    context: int,
    int8_cache: bool,
    unrolled: bool | None,
    chip: Chip | str | None,
    *,
    reads: bool,
) -> jax.stages.Lowered:
    plan, unrolled = as_plan(plan), as_unrolled(unrolled, mesh, chip)
    int8_cache = as_flag("int8_cache", int8_cache)
    params = params_shapes(config, jnp.bfloat16, int8=weights == "int8", unrolled=unrolled)
    past, cache_dtype = context if reads else 0, jnp.int8 if int8_cache else jnp.bfloat16
    load = load_of(params, batch, new, past, cache_dtype)
    program = Program.of(config, mesh, plan, schedule, params, chip, load)
    cache = jax.eval_shape(
        lambda: empty_cache(
            config,
            batch,
            context,
            jnp.bfloat16,
            int8=int8_cache,
            stored_batch=program.padded_batch(batch),
        )
    )
    replicated = NamedSharding(mesh, P())
    return extender(program).lower(
        _placed(params, shardings(mesh, program.param_specs(params))),
        _placed(cache, shardings(mesh, program.cache_specs(cache))),
        jax.ShapeDtypeStruct((batch, new), jnp.int32, sharding=replicated),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=replicated),
        reads=reads,
    )


def _placed(shapes: Tree, placed: object) -> Tree:
    """Shapes with shardings."""
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        placed,
    )
