"""From functions of local shards to functions of global arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce


def on_mesh(mesh: Any, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    """`function` of local shards as one of global arrays, on a mesh with Auto or Explicit axes."""
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return lambda *values: mapped(*_laid_out(mesh, values, in_specs))


def _laid_out(mesh: Any, values: Any, specs: Any) -> Any:
    """Global arrays in `specs`, where the mesh has Explicit axes, whose types must say so."""
    if AxisType.Explicit not in mesh.axis_types:
        return values
    return jax.tree.map(
        lambda spec, x: jax.reshard(x, NamedSharding(mesh, spec)),
        specs,
        values,
        is_leaf=lambda x: isinstance(x, P),
    )


def spec_of(x: Any, spec: P) -> Any:
    """`spec` as in_specs of an array or a Quantized."""
    return x.partition_specs(spec) if isinstance(x, ce.Quantized) else spec


def weight_specs_of(weights: Mapping[str, Any], by_name: Mapping[str, P]) -> dict[str, Any]:
    """The in_specs of one layer's weights, nested dicts included; what has no name is whole."""
    return {
        name: weight_specs_of(x, by_name)
        if isinstance(x, Mapping)
        else spec_of(x, by_name.get(name, P()))
        for name, x in weights.items()
    }
