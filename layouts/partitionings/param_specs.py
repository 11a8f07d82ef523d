"""The partition specs of parameters: the same in all layouts, so that one copy serves them all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.tree_util import KeyPath

import collective_einsum as ce

from ..mesh.axes import AxesLike, MeshLike, named, naming
from ..mesh.axis_collectives import AXES, WEIGHT_AXES, Axes, as_mesh, check_mesh
from ..mesh.shard_map_entry import spec_of
from ..models.config import ModelConfig
from ..models.named_models import as_config
from ..models.params import Params, params_shapes
from ..models.stacked_params import is_unrolled
from .attention_placement import stored_kv_axes

# The matrices of a feedforward and their biases, the router of its experts, and the feedforward that all
# tokens have beside them, by their names in a block, over axes of a layout.
WEIGHT_SPECS = {
    "w_in": P("x", WEIGHT_AXES),
    "w_gate": P("x", WEIGHT_AXES),
    "w_out": P(WEIGHT_AXES, "x"),
    "b_in": P(WEIGHT_AXES),
    "b_gate": P(WEIGHT_AXES),
    "b_out": P(),
    "w_router": P(),
    "b_router": P(),
    "w_shared_in": P("x", WEIGHT_AXES),
    "w_shared_gate": P("x", WEIGHT_AXES),
    "w_shared_out": P(WEIGHT_AXES, "x"),
    "w_shared_router": P(),
}


def param_specs(
    config: ModelConfig | str,
    mesh: MeshLike,
    params: Params | None = None,
    *,
    axes: AxesLike = None,
) -> Params:
    """The partition spec of every parameter, the same in all layouts.

    Args:
      config: the model.
      mesh: with axes x, y and z; its sizes decide whether key-value heads and the vocabulary can be
        sharded.
      params: arrays or shapes, from which is inferred which are Quantized and whether layers are
        unrolled; by default neither.
      axes: the mesh axes that x, y and z stand for, if they are called otherwise; a `MeshAxes`.

    Raises:
      ValueError: the mesh has other axes, or `config` is neither a config nor a model's name.
    """
    with naming(axes):
        config, sizes = as_config(config), check_mesh(mesh)
        params = params_shapes(config) if params is None else params
        return named(placed_param_specs(config, sizes, params))


def placed_param_specs(config: ModelConfig, sizes: Mapping[str, int], params: Params) -> Params:
    """The partition spec of every parameter, over the axes of a layout.

    Args:
      config: the model.
      sizes: of the mesh axes x, y and z.
      params: arrays or shapes.
    """
    by_name = block_specs(config, sizes)
    table = P(vocab_axes(config, sizes) or None, None)
    positions = P(table_axes(config.learned_positions or 1, sizes) or None, None)
    leading = () if is_unrolled(params) else (None,)

    def spec(path: KeyPath, x: object) -> P | ce.Quantized:
        name = str(getattr(path[-1], "key", path[-1]))
        if name in ("embedding", "unembedding"):
            return spec_of(x, table)
        if name == "positions":
            return positions
        if name == "b_unembedding":
            return P(*table[:1])
        if str(getattr(path[0], "key", path[0])) != "blocks":
            return spec_of(x, P())
        return spec_of(x, P(*leading, *by_name.get(name, P())))

    return jax.tree_util.tree_map_with_path(
        spec, params, is_leaf=lambda x: isinstance(x, ce.Quantized)
    )


def shardings(mesh: MeshLike, specs: object) -> Any:
    """A pytree of partition specs as NamedShardings on a mesh, for out_shardings or device_put.

    Raises:
      ValueError: `mesh` is no mesh.
    """
    mesh = as_mesh(mesh)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P)
    )


def block_specs(config: ModelConfig, sizes: Mapping[str, int]) -> dict[str, P]:
    """The partition specs of the matrices and biases of one layer, by name; norms are replicated."""
    kv = stored_kv_axes(config, sizes) or None
    return {
        **WEIGHT_SPECS,
        "w_q": P("x", WEIGHT_AXES),
        "w_kv": P("x", kv),
        "w_o": P(WEIGHT_AXES, "x"),
        "b_q": P(WEIGHT_AXES),
        "b_kv": P(kv),
    }


def vocab_axes(config: ModelConfig, sizes: Mapping[str, int]) -> Axes:
    """The axes that shard the vocabulary, as `table_axes` says."""
    return table_axes(config.stored_vocab, sizes)


def table_axes(rows: int, sizes: Mapping[str, int]) -> Axes:
    """The axes that shard the rows of a table: x, y and z, as far as one after another divides them."""
    left, axes = rows, []
    for axis in AXES:
        if left % sizes[axis] == 0:
            axes.append(axis)
            left //= sizes[axis]
    return tuple(axes)
