"""The entry to shard_map: functions of local shards become functions of global arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.global_arrays import explicit_axes, explicit_spec, on_auto_axes

from ..models.stacked_params import LayerWeights, Params, Tree
from .axes import AXES, BATCH, MeshAxes, MeshLike, mesh_axes, named, names, naming


def on_mesh(
    mesh: MeshLike, function: Callable[..., Tree], in_specs: object, out_specs: object
) -> Callable[..., Tree]:
    """`function` of local shards as a function of global arrays, on a mesh with Auto or Explicit axes.

    Arrays are replicated over the axes that their spec does not name.
    """
    mapped = jax.shard_map(
        function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return lambda *values: mapped(*_laid_out(mesh, values, in_specs))


def layer_on_mesh(
    mesh: MeshLike,
    function: Callable[..., Tree],
    x: jax.Array,
    rest: tuple[object, ...],
    specs: tuple[P, *tuple[object, ...]],
    out_specs: Callable[[P], P | tuple[object, ...]],
) -> Tree:
    """Calls `function(x, *rest)`, a function of local shards, on global arrays.

    Further axes of the mesh shard the batch, where the `MeshAxes` in scope or the type of x says so.
    Other further axes are left to the compiler if they are Auto; over Explicit ones everything is
    replicated.

    Args:
      mesh: with the axes that are in scope, of which some may be manual already.
      function: of local shards.
      x: activations between layers, [batch, ...].
      rest: the further arguments of `function`, pytrees of arrays.
      specs: partition specs of x and of the rest, over axes of a layout.
      out_specs: partition specs of the results, likewise, as a function of the one of x.

    Raises:
      ValueError: the axes of a dimension do not divide its size.
    """
    with naming(_with_batch(mesh, x)):
        manual = tuple(jax.sharding.get_abstract_mesh().manual_axes)
        auto = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
        ours = {name for name, kind in auto.items() if kind == AxisType.Explicit}
        ours = (ours | set(names((*AXES, BATCH)))) - set(manual)
        spec = named(specs[0])
        own = _typed(x, mesh)
        # Axes of size 1 may be in a type or not.
        alike = own is not None and _longer(own, mesh) == _longer(spec, mesh)
        in_specs = (own if alike else spec, *named(specs[1:]))
        results = named(out_specs(specs[0]))
        if alike:
            # The type of x comes out as it went in.
            results = own if isinstance(results, P) else (own, *results[1:])
        _check_divides(mesh, (x, *rest), in_specs)
        mapped = jax.shard_map(
            function,
            mesh=None if manual else mesh,
            in_specs=in_specs,
            out_specs=results,
            check_vma=False,
            axis_names=ours,
        )
        # A function that leaves some axes to the compiler needs one.
        mapped = jax.jit(mapped) if len(ours) < len(auto) else mapped
        return mapped(*_laid_out(mesh, (x, *rest), in_specs))


def on_auto(
    function: Callable[..., Tree], out_specs: Callable[[P], object], x: jax.Array, *rest: object
) -> Tree:
    """Calls `function(x, *rest)` inside shard_map, with axes that are Explicit there as Auto ones.

    `out_specs` gives the partition specs of the results over these axes, from the one of x.
    """
    if not explicit_axes():
        return function(x, *rest)
    return on_auto_axes(function, out_specs(explicit_spec(x)), x, *rest)


def _with_batch(mesh: MeshLike, x: jax.Array) -> MeshAxes:
    """The `MeshAxes` in scope; its batch axes are those that shard dimension 0 in the type of x, beyond
    x, y and z, unless it names some."""
    scope, own = mesh_axes(), _typed(x, mesh)
    if scope.of(BATCH) or own is None or not len(own) or own[0] is None:
        return scope
    entry = own[0] if isinstance(own[0], tuple) else (own[0],)
    others = tuple(name for name in entry if name not in names(AXES))
    return dataclasses.replace(scope, batch=others)


def _typed(x: jax.Array, mesh: MeshLike) -> P | None:
    """The partition spec in the type of x, over this mesh; None if its type has none."""
    if AxisType.Explicit not in mesh.axis_types:
        return None
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or sharding.mesh.shape != mesh.shape:
        return None
    return P(*sharding.spec)


def _longer(spec: P, mesh: MeshLike) -> list[tuple[str, ...]]:
    """The axes of more than one device that shard each dimension, without trailing unsharded ones."""
    entries = [() if e is None else (e,) if isinstance(e, str) else tuple(e) for e in spec]
    longer = [tuple(name for name in entry if mesh.shape[name] > 1) for entry in entries]
    while longer and not longer[-1]:
        longer.pop()
    return longer


def _laid_out(mesh: MeshLike, values: Tree, specs: object) -> Tree:
    """Global arrays resharded to `specs` where the mesh has Explicit axes, since types must agree.

    A spec may stand for a pytree of arrays, as in_specs of a shard_map do.
    """
    if AxisType.Explicit not in mesh.axis_types:
        return values

    def reshard(spec: P, x: jax.Array) -> jax.Array:
        own = _typed(x, mesh)
        if own is not None and own == P(*spec, *[None] * (len(own) - len(spec))):
            return x
        return jax.reshard(x, NamedSharding(mesh, spec))

    return jax.tree.map(
        lambda spec, tree: jax.tree.map(lambda x: reshard(spec, x), tree),
        specs,
        values,
        is_leaf=lambda x: isinstance(x, P),
    )


def _check_divides(mesh: MeshLike, values: object, specs: object) -> None:
    """Refuses arrays of sizes that the mesh does not divide."""

    def check(spec: P, x: jax.Array) -> None:
        for dim, entry in enumerate(spec):
            axes = () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
            n = math.prod(mesh.shape[name] for name in axes)
            if x.shape[dim] % n:
                raise ValueError(
                    f"dimension {dim} of an array of shape {tuple(x.shape)} is sharded over the axes "
                    f"{axes}, {n} devices, which do not divide {x.shape[dim]}; pad it to "
                    f"{-(-x.shape[dim] // n) * n}, or choose another layout or mesh"
                )

    jax.tree.map(check, specs, values, is_leaf=lambda x: isinstance(x, P))


def spec_of(x: object, spec: P) -> P | ce.Quantized:
    """The in_specs of an array or a Quantized whose values have the partition spec `spec`."""
    return x.partition_specs(spec) if isinstance(x, ce.Quantized) else spec


def weight_specs_of(weights: LayerWeights, by_name: Mapping[str, P]) -> Params:
    """The in_specs of one layer's weights, by name in `by_name`, nested dicts included; a weight of
    another name is replicated."""
    return {
        name: weight_specs_of(x, by_name)
        if isinstance(x, Mapping)
        else spec_of(x, by_name.get(name, P()))
        for name, x in weights.items()
    }
