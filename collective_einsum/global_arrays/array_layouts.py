"""How global operands and results are laid out on a mesh, read and checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ..spec import spec as specs
from ..spec.quantized import Quantized
from ..spec.spec import Spec
from .infer_collectives import Axes, Layout

AnyMesh = Mesh | AbstractMesh


def find_mesh(
    spec: object, mesh: Any, operands: Sequence[jax.Array | Quantized], out_sharding: object
) -> AnyMesh | None:
    """The mesh to work on: the context's, or else the one given, or else that of the operands.

    An operand on another mesh of Auto axes is laid out by jit, which compares devices.

    Raises:
      ValueError: two of them differ, or `mesh` is no mesh.
    """
    if mesh is not None and not isinstance(mesh, AnyMesh):
        raise ValueError(f"einsum {spec}: mesh={mesh!r} is no jax.sharding.Mesh")
    # Inside a shard_map only the context's mesh knows which axes are manual.
    known: list[tuple[str, AnyMesh]] = [("the context", jax.sharding.get_abstract_mesh())]
    if mesh is not None:
        known.append(("mesh=", mesh))
    if isinstance(out_sharding, NamedSharding):
        known.append(("out_sharding", out_sharding.mesh))
    own = [
        (side, _mesh_of(x)) for side, x in zip(specs.sides(len(operands)), operands, strict=True)
    ]
    loose = [candidate for _, candidate in own if _is_auto(candidate)]
    known += [(side, candidate) for side, candidate in own if not _is_auto(candidate)]
    known = [(whose, candidate) for whose, candidate in known if not candidate.empty]
    if not known:
        alike = {candidate.shape_tuple for candidate in loose}
        return loose[0] if len(alike) == 1 else None
    (first, chosen), *others = known
    for whose, other in others:
        if other.shape_tuple != chosen.shape_tuple:
            raise ValueError(
                f"einsum {spec}: the mesh of {first} has axes {_described(chosen)}, that of "
                f"{whose} has {_described(other)}; use one mesh for all"
            )
    return chosen


def _mesh_of(x: jax.Array | Quantized) -> AnyMesh:
    """The mesh of an operand: the devices themselves where there is an array."""
    at = placed(x)
    return at.mesh if at is not None else jax.typeof(values_of(x)).sharding.mesh


def _is_auto(mesh: AnyMesh) -> bool:
    return not mesh.empty and axes_of_type(mesh, AxisType.Auto) == mesh.axis_names


def placed(x: jax.Array | Quantized) -> NamedSharding | None:
    """Where an array lies, which is not known of one that is traced."""
    values = values_of(x)
    if isinstance(values, Tracer) or not isinstance(values.sharding, NamedSharding):
        return None
    return values.sharding


def _described(mesh: AnyMesh) -> str:
    return ", ".join(f"{name!r} of size {size}" for name, size in mesh.shape_tuple)


def values_of(x: jax.Array | Quantized) -> jax.Array:
    """The array of an operand, without its scale."""
    return x.values if isinstance(x, Quantized) else x


def axes_of_type(mesh: AnyMesh, kind: AxisType) -> Axes:
    """The axes of `mesh` that are Auto, Explicit or Manual."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, axis_type in pairs if axis_type == kind)


def operand_specs(
    spec: object,
    operands: Sequence[jax.Array | Quantized],
    in_specs: Sequence[PartitionSpec] | None,
    mesh: AnyMesh,
) -> list[PartitionSpec | None] | None:
    """The PartitionSpecs of the operands: `in_specs`, or those of Explicit types or of arrays that
    are there; None if the mesh has Auto axes and an operand is traced, or lies on another mesh.

    Raises:
      ValueError: `in_specs` of another number.
    """
    if in_specs is None:
        seen = [_seen(x, mesh) for x in operands]
        return None if any(spec is None for spec in seen) else seen
    if isinstance(in_specs, PartitionSpec) or not isinstance(in_specs, tuple | list):
        number = None
    else:
        number = len(in_specs)
    if number != len(operands):
        wanted = (
            "a pair of PartitionSpecs, one for lhs and one for rhs"
            if len(operands) == 2
            else f"a tuple of PartitionSpecs, one for each of {len(operands)} operand(s)"
        )
        raise ValueError(f"einsum {spec}: in_specs must be {wanted}, got {in_specs!r}")
    return list(in_specs)


def _seen(x: jax.Array | Quantized, mesh: AnyMesh) -> PartitionSpec | None:
    if not axes_of_type(mesh, AxisType.Auto):
        return jax.typeof(values_of(x)).sharding.spec
    if isinstance(values_of(x), Tracer):
        return None
    at = placed(x)
    if at is None:
        return PartitionSpec() if values_of(x).sharding.num_devices == 1 else None
    return at.spec if at.mesh.shape_tuple == mesh.shape_tuple else None


def operand_layouts(
    spec: object,
    terms: Sequence[str],
    operands: Sequence[jax.Array | Quantized],
    given: Sequence[Any],
    mesh: AnyMesh,
) -> list[Layout]:
    """The layouts of the operands, by their PartitionSpecs.

    Raises:
      ValueError: one that its operand's type contradicts, or one that `layout` refuses.
    """
    sides = specs.sides(len(operands))
    return [
        _operand_layout(spec, side, labels, x, own, mesh)
        for side, labels, x, own in zip(sides, terms, operands, given, strict=True)
    ]


def unseen(spec: object, mesh: AnyMesh | None, count: int) -> ValueError:
    """The error where the shardings of operands are needed and cannot be known."""
    if mesh is None:
        return ValueError(
            f"einsum {spec}: no mesh is known; pass mesh=, enter one with jax.set_mesh(mesh), or "
            "give out_sharding as a NamedSharding"
        )
    auto = axes_of_type(mesh, AxisType.Auto)
    wanted = ", ".join(f"PartitionSpec of {side}" for side in specs.sides(count))
    return ValueError(
        f"einsum {spec}: mesh axes {auto} are Auto, so the operands' types do not say how "
        f"they are sharded; pass in_specs=({wanted}), or "
        "make the mesh with axis_types Explicit"
    )


def _operand_layout(
    spec: object, side: str, labels: str, x: Any, given: object, mesh: AnyMesh
) -> Layout:
    given_axes = layout(spec, side, given, labels, x.shape, mesh)
    explicit = axes_of_type(mesh, AxisType.Explicit)
    if not explicit:
        return given_axes
    typed = jax.typeof(values_of(x)).sharding.spec
    by_type = layout(spec, f"the type of {side}", typed, labels, x.shape, mesh)
    by_spec = tuple(tuple(axis for axis in axes if axis in explicit) for axes in given_axes)
    if by_type != by_spec:
        raise ValueError(
            f"einsum {spec}: in_specs says {given} for {side}, but over the Explicit axes "
            f"{explicit} its type says {typed}; leave in_specs out, or change the operand with "
            "jax.reshard"
        )
    return given_axes


def layout(
    spec: object, side: str, given: object, labels: str, shape: tuple[int, ...], mesh: AnyMesh
) -> Layout:
    """The axes of each dimension of an array of `shape`, by the PartitionSpec `given`.

    Raises:
      ValueError: no PartitionSpec, one that is too long, an axis unknown, manual or named twice, a
        dimension that its axes do not divide, or an entry that no einsum can honour.
    """
    where = f"einsum {spec}: the sharding {given} of {side}"
    if not isinstance(given, PartitionSpec):
        raise ValueError(f"einsum {spec}: the sharding of {side} must be a jax.P, got {given!r}")
    if given.unreduced or given.reduced:
        raise ValueError(
            f"{where} is unreduced or reduced over an axis, which no einsum here makes or takes; "
            "use jax.reshard first, or name the axis in a dimension"
        )
    if len(given) > len(shape):
        raise ValueError(
            f"{where} has {len(given)} entries, but {labels!r} has {len(shape)} dimension(s), of "
            f"shape {shape}; drop the entries beyond"
        )
    entries = [*given, *[None] * (len(shape) - len(given))]
    by_dim = []
    for entry in entries:
        if entry is PartitionSpec.UNCONSTRAINED:
            raise ValueError(f"{where} is UNCONSTRAINED; name its mesh axes, or None")
        by_dim.append(() if entry is None else entry if isinstance(entry, tuple) else (entry,))
    sizes, manual = dict(mesh.shape_tuple), axes_of_type(mesh, AxisType.Manual)
    seen: dict[str, str] = {}
    for label, size, axes in zip(labels, shape, by_dim, strict=True):
        for axis in axes:
            if axis not in sizes:
                raise ValueError(
                    f"{where} names axis {axis!r}, which the mesh does not have; its axes are "
                    f"{_described(mesh)}"
                )
            if axis in manual:
                raise ValueError(
                    f"{where} names axis {axis!r}, which a surrounding shard_map has made manual; "
                    "inside it, leave the axis out, or use all_gather_einsum or "
                    "einsum_reduce_scatter over it"
                )
            if axis in seen:
                raise ValueError(
                    f"{where} uses axis {axis!r} twice, for {seen[axis]!r} and {label!r}; an axis "
                    "shards one dimension of an array"
                )
            seen[axis] = label
        n = math.prod(sizes[axis] for axis in axes)
        if size % n:
            raise ValueError(
                f"{where} divides label {label!r} of size {size} by {axes} of size {n}, with a "
                f"remainder; pad {label!r} to {-(-size // n) * n}, or shard another dimension"
            )
    return tuple(by_dim)


def result_layout(
    spec: object, out: str, out_sharding: object, shape: tuple[int, ...], mesh: AnyMesh
) -> Layout | None:
    """The layout of the result by `out_sharding`, or None if that says nothing.

    Raises:
      ValueError: as `layout`.
    """
    if out_sharding is None:
        return None
    if isinstance(out_sharding, NamedSharding):
        out_sharding = out_sharding.spec
    return layout(spec, "the result", out_sharding, out, shape, mesh)


def natural(spec: Spec, lhs: Layout, rhs: Layout) -> Layout:
    """The layout of the result when each label keeps its axes, as `jnp.einsum` has it.

    Raises:
      ValueError: a contracted label is sharded in both operands, a label differently in each, or
        one axis would shard two dimensions of the result.
    """
    fix = "give out_sharding"
    by_label: dict[str, Axes] = {}
    left = dict(zip(spec.lhs, lhs, strict=True))
    right = dict(zip(spec.rhs, rhs, strict=True))
    for label in spec.labels:
        one, other = left.get(label, ()), right.get(label, ())
        if one and other and label not in spec.out:
            raise ValueError(
                f"einsum {spec}: label {label!r} is summed over and sharded in both operands, over "
                f"{one} and {other}, so the result could be reduced onto any of its dimensions or "
                f"none; {fix}"
            )
        if one and other and one != other:
            raise ValueError(
                f"einsum {spec}: label {label!r} is sharded over {one} in lhs and over {other} in "
                f"rhs, so that of the result is ambiguous; {fix}"
            )
        by_label[label] = one or other
    result = tuple(by_label[label] for label in spec.out)
    for i, axes in enumerate(result):
        for j in range(i):
            for axis in set(axes) & set(result[j]):
                raise ValueError(
                    f"einsum {spec}: axis {axis!r} shards {spec.out[j]!r} of one operand and "
                    f"{spec.out[i]!r} of the other, and cannot shard both in the result; {fix}"
                )
    return result


def kept(spec: Spec, lhs: Layout, rhs: Layout) -> Layout:
    """As `natural`, but never refuses: where the result is ambiguous, an axis shards the first dimension
    that it may, and no dimension that is summed over."""
    left = dict(zip(spec.lhs, lhs, strict=True))
    right = dict(zip(spec.rhs, rhs, strict=True))
    result: list[Axes] = []
    for label in spec.out:
        used = {axis for axes in result for axis in axes}
        axes = left.get(label) or right.get(label, ())
        result.append(axes if not used & set(axes) else ())
    return tuple(result)


def partition_spec(layout: Layout) -> PartitionSpec:
    """The PartitionSpec of a layout."""
    return PartitionSpec(*(axes or None for axes in layout))


def laid_out(x: jax.Array, layout: Layout, mesh: AnyMesh) -> jax.Array:
    """`x` with the type of `layout` on Explicit axes."""
    explicit = axes_of_type(mesh, AxisType.Explicit)
    if not explicit:
        return x
    entries = tuple(tuple(axis for axis in axes if axis in explicit) for axes in layout)
    return jax.reshard(x, NamedSharding(mesh, partition_spec(entries)))
