"""A pair of layouts, what it asks of a model and a mesh, and where it puts every array."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from ..layers.embedding import vocab_axes
from ..layers.kv_cache import Cache
from ..layers.kv_cache import cache_specs as cache_parts
from ..layers.layer_context import block_specs
from ..mesh.axes import AxesLike, named, naming
from ..mesh.axis_collectives import as_mesh, check_mesh
from ..mesh.shard_map_entry import spec_of
from ..models.config import ModelConfig, as_config
from ..models.params import Params, params_shapes
from ..models.stacked_params import is_unrolled
from .attention_placement import Placement, misplaced, place
from .mesh_fit import model_misfit
from .named_layouts import Partitioning as Partitioning
from .named_layouts import as_plan


def param_specs(
    config: ModelConfig | str, mesh: Any, params: Params | None = None, *, axes: AxesLike = None
) -> Params:
    """The partition spec of every parameter, the same in all layouts.

    Args:
      config: the model.
      mesh: with axes x, y and z; its sizes decide whether key-value heads and the vocabulary can be
        sharded.
      params: arrays or shapes, which say what is Quantized; nothing, unless given.
      axes: what the mesh calls x, y and z, if something else; a `MeshAxes`.

    Raises:
      ValueError: the mesh has other axes, or `config` is neither a config nor a model's name.
    """
    with naming(axes):
        config, sizes = as_config(config), check_mesh(mesh)
    params = params_shapes(config) if params is None else params
    by_name = block_specs(config, sizes)
    table = P(vocab_axes(config, sizes) or None, None)
    leading = () if is_unrolled(params) else (None,)

    def spec(path: Any, x: Any) -> Any:
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("embedding", "unembedding"):
            return spec_of(x, table)
        if str(getattr(path[0], "key", path[0])) != "blocks":
            return spec_of(x, P())
        return spec_of(x, P(*leading, *by_name.get(name, P())))

    found = jax.tree_util.tree_map_with_path(
        spec, params, is_leaf=lambda x: isinstance(x, ce.Quantized)
    )
    with naming(axes):
        return named(found)


def shardings(mesh: Any, specs: Any) -> Any:
    """`specs` as NamedShardings on a mesh, for out_shardings or device_put.

    Raises:
      ValueError: `mesh` is no mesh.
    """
    mesh = as_mesh(mesh)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )


def placement(config: ModelConfig, mesh: Any, plan: Any) -> Placement:
    """Where attention happens under `plan`; see `placement.place`.

    Raises:
      ValueError: the mesh has other axes, or the layouts cannot shard the model over it.
    """
    sizes = check_mesh(mesh)
    check_layouts(config, sizes, plan)
    return place(config, plan.feedforward, plan.attention, sizes)


def cache_specs(
    config: ModelConfig | str, mesh: Any, plan: Any, cache: Cache, *, axes: AxesLike = None
) -> Cache:
    """The partition spec of every array of a cache under `plan`; `axes` as `param_specs`."""
    with naming(axes):
        found = placement(as_config(config), mesh, as_plan(plan))
        return named(cache_parts(cache, found.batch_axes, found.kv_axes))


def misfit(config: ModelConfig, sizes: Mapping[str, int], plan: Any) -> str:
    """Why layouts cannot shard a model over a mesh, and what to do about it; "" if they can.

    What the planner excludes, and what every step refuses.
    """
    why = model_misfit(config, sizes)
    return why or misplaced(config, plan.feedforward, plan.attention, sizes)


def check_model(config: ModelConfig, sizes: Mapping[str, int]) -> None:
    """Refuses a mesh that cannot hold a model under any layout.

    Raises:
      ValueError: d_model or d_ff does not divide over all chips, or heads do not over y and z.
    """
    _refuse(model_misfit(config, sizes))


def check_layouts(config: ModelConfig, sizes: Mapping[str, int], plan: Any) -> None:
    """Refuses layouts that cannot shard a model over a mesh.

    Raises:
      ValueError: `misfit` says why.
    """
    _refuse(misfit(config, sizes, plan))


def _refuse(why: str) -> None:
    if why:
        raise ValueError(why)
