"""How global operands and results are laid out on a mesh, read and checked."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .inference import Axes, Layout
from .quantized import Quantized
from .spec import Spec

AnyMesh = Mesh | AbstractMesh


def find_mesh(spec: Spec, mesh: Any, operands: Any, out_sharding: Any) -> AnyMesh:
    """The mesh to work on: the context's, or else the one given, or else that of the types.

    Raises:
      ValueError: none is found, or two differ.
    """
    if mesh is not None and not isinstance(mesh, AnyMesh):
        raise ValueError(f"einsum {spec}: mesh={mesh!r} is no jax.sharding.Mesh")
    found: list[tuple[str, AnyMesh]] = [] if mesh is None else [("mesh=", mesh)]
    if isinstance(out_sharding, NamedSharding):
        found.append(("out_sharding", out_sharding.mesh))
    for side, x in zip(("lhs", "rhs"), operands, strict=True):
        found.append((side, jax.typeof(values_of(x)).sharding.mesh))
    # Inside a shard_map only the context's mesh knows which axes are manual.
    found.insert(0, ("the context", jax.sharding.get_abstract_mesh()))
    found = [(whose, each) for whose, each in found if not each.empty]
    if not found:
        raise ValueError(
            f"einsum {spec}: no mesh is known; pass mesh=, enter one with jax.set_mesh(mesh), or "
            "give out_sharding as a NamedSharding"
        )
    (first, chosen), *others = found
    for whose, other in others:
        if other.shape_tuple != chosen.shape_tuple:
            raise ValueError(
                f"einsum {spec}: the mesh of {first} has axes {_described(chosen)}, that of "
                f"{whose} has {_described(other)}; use one mesh for all"
            )
    return chosen


def _described(mesh: AnyMesh) -> str:
    return ", ".join(f"{name!r} of size {size}" for name, size in mesh.shape_tuple)


def values_of(x: Any) -> Any:
    """The array of an operand, without its scale."""
    return x.values if isinstance(x, Quantized) else x


def axes_of_type(mesh: AnyMesh, kind: AxisType) -> Axes:
    """The axes of `mesh` that are Auto, Explicit or Manual."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, each in pairs if each == kind)


def operand_layouts(
    spec: Spec, operands: tuple[Any, Any], in_specs: Any, mesh: AnyMesh
) -> tuple[Layout, Layout]:
    """The layouts of lhs and rhs, from `in_specs` and, of Explicit axes, from their types.

    Raises:
      ValueError: Auto axes and no `in_specs`, one that its operand's type contradicts, or one that
        `layout` refuses.
    """
    auto = axes_of_type(mesh, AxisType.Auto)
    if in_specs is None:
        if auto:
            raise ValueError(
                f"einsum {spec}: mesh axes {auto} are Auto, so the operands' types do not say how "
                "they are sharded; pass in_specs=(PartitionSpec of lhs, PartitionSpec of rhs), or "
                "make the mesh with axis_types Explicit"
            )
        given = tuple(jax.typeof(values_of(x)).sharding.spec for x in operands)
    elif isinstance(in_specs, tuple | list) and len(in_specs) == 2:
        given = tuple(in_specs)
    else:
        raise ValueError(
            f"einsum {spec}: in_specs must be a pair of PartitionSpecs, one for lhs and one for "
            f"rhs, got {in_specs!r}"
        )
    sides = zip(("lhs", "rhs"), (spec.lhs, spec.rhs), operands, given, strict=True)
    lhs, rhs = (
        _operand_layout(spec, side, labels, x, each, mesh) for side, labels, x, each in sides
    )
    return lhs, rhs


def _operand_layout(
    spec: Spec, side: str, labels: str, x: Any, given: Any, mesh: AnyMesh
) -> Layout:
    found = layout(spec, side, given, labels, x.shape, mesh)
    explicit = axes_of_type(mesh, AxisType.Explicit)
    typed = jax.typeof(values_of(x)).sharding.spec
    by_type = layout(spec, f"the type of {side}", typed, labels, x.shape, mesh)
    by_spec = tuple(tuple(axis for axis in axes if axis in explicit) for axes in found)
    if by_type != by_spec:
        raise ValueError(
            f"einsum {spec}: in_specs says {given} for {side}, but over the Explicit axes "
            f"{explicit} its type says {typed}; leave in_specs out, or change the operand with "
            "jax.reshard"
        )
    return found


def layout(
    spec: Spec, side: str, given: Any, labels: str, shape: tuple[int, ...], mesh: AnyMesh
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
    found = []
    for entry in entries:
        if entry is PartitionSpec.UNCONSTRAINED:
            raise ValueError(f"{where} is UNCONSTRAINED; name its mesh axes, or None")
        found.append(() if entry is None else entry if isinstance(entry, tuple) else (entry,))
    sizes, manual = dict(mesh.shape_tuple), axes_of_type(mesh, AxisType.Manual)
    seen: dict[str, str] = {}
    for label, size, axes in zip(labels, shape, found, strict=True):
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
    return tuple(found)


def result_layout(
    spec: Spec, out_sharding: Any, shape: tuple[int, ...], lhs: Layout, rhs: Layout, mesh: AnyMesh
) -> Layout:
    """The layout of the result: `out_sharding`, or what the operands leave no doubt about.

    Raises:
      ValueError: as `layout`, or without `out_sharding`, as `natural`.
    """
    if out_sharding is None:
        return natural(spec, lhs, rhs)
    if isinstance(out_sharding, NamedSharding):
        out_sharding = out_sharding.spec
    return layout(spec, "the result", out_sharding, spec.out, shape, mesh)


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
    found = tuple(by_label[label] for label in spec.out)
    for i, axes in enumerate(found):
        for j in range(i):
            for axis in set(axes) & set(found[j]):
                raise ValueError(
                    f"einsum {spec}: axis {axis!r} shards {spec.out[j]!r} of one operand and "
                    f"{spec.out[i]!r} of the other, and cannot shard both in the result; {fix}"
                )
    return found


def partition_spec(layout: Layout) -> PartitionSpec:
    """The PartitionSpec of a layout."""
    return PartitionSpec(*(axes or None for axes in layout))
