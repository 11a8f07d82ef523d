"""Checks of an einsum's sizes, label by label, and of the mesh axes its collective goes over."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import math
import numbers
from collections.abc import Iterator, Sequence

import jax
from jax import lax

from .spec import Gather, Operand, Shape, Spec, sides


def check_sizes(
    spec: Spec, lhs_shape: Shape, rhs_shape: Shape, gather: Gather | None = None
) -> dict[str, int]:
    """The size of each label in the einsum that each device computes, after `gather`.

    As in `jnp.einsum`, size 1 broadcasts against any size of the other operand, whatever the label.
    Within one operand the sizes of a repeated label must be equal.

    Raises:
      ValueError: the operands disagree on a label.
    """
    sizes_of_label: dict[str, list[int]] = collections.defaultdict(list)
    for side, labels, shape in (("lhs", spec.lhs, lhs_shape), ("rhs", spec.rhs, rhs_shape)):
        if len(labels) != len(shape):
            raise ValueError(
                f"einsum {spec}: {labels!r} does not fit the {side} shape {tuple(shape)}"
            )
        own: dict[str, int] = {}
        for label, size in zip(labels, shape, strict=True):
            moved = gather is not None and (label, side) == (gather.label, gather.operand)
            size = gather.full if gather is not None and moved else size
            if own.setdefault(label, size) != size:
                raise ValueError(
                    f"einsum {spec}: label {label!r} stands for sizes {own[label]} and {size} "
                    f"within {side}, whose shape is {tuple(shape)}; a diagonal needs them equal"
                )
        for label, size in own.items():
            sizes_of_label[label].append(size)
    return {label: _merge(spec, label, sizes, gather) for label, sizes in sizes_of_label.items()}


def sizes_of(spec: object, terms: Sequence[str], shapes: Sequence[Shape]) -> dict[str, int]:
    """The size of each label of an einsum of global arrays; 1 gives way to any other.

    Raises:
      ValueError: two operands, or two dimensions of one, disagree.
    """
    size_and_operand: dict[str, tuple[int, str]] = {}
    for side, labels, shape in zip(sides(len(terms)), terms, shapes, strict=True):
        own: dict[str, int] = {}
        for label, size in zip(labels, shape, strict=True):
            if own.setdefault(label, size) != size:
                raise ValueError(
                    f"einsum {spec}: label {label!r} stands for sizes {own[label]} and {size} "
                    f"within {side}, whose shape is {tuple(shape)}; a diagonal needs them equal"
                )
        for label, size in own.items():
            before, whose = size_and_operand.get(label, (1, ""))
            here = f"{side}, of shape {tuple(shape)}"
            if 1 not in (before, size) and before != size:
                raise ValueError(
                    f"einsum {spec}: label {label!r} is {before} in {whose}, and {size} in {here}; "
                    "global sizes must be equal"
                )
            if label not in size_and_operand or size != 1:
                size_and_operand[label] = size, here
    return {label: size for label, (size, _) in size_and_operand.items()}


def _merge(spec: Spec, label: str, sizes: list[int], gather: Gather | None) -> int:
    """One size out of what the operands say, 1 giving way to anything else."""
    distinct = sorted(set(sizes) - {1})
    if len(distinct) > 1:
        after = f" (after the gather of {gather.label!r} in {gather.operand})" if gather else ""
        raise ValueError(
            f"einsum {spec}: label {label!r} is {sizes[0]} in lhs and {sizes[1]} in rhs{after}. "
            f"Locally both must be equal: shard {label!r} alike in both operands, or "
            f"gather={label!r} if one of them holds a shard of it"
        )
    return distinct[0] if distinct else 1


def squeeze_broadcasts(
    spec: Spec, lhs_shape: Shape, rhs_shape: Shape, gather: Gather | None = None
) -> tuple[Spec, tuple[int, ...], tuple[int, ...]]:
    """The einsum without size-1 broadcasting, and the dimensions to squeeze out of lhs and rhs.

    Afterwards every label has one size wherever it stands. Positions in `gather` are those before
    squeezing.

    Raises:
      ValueError: as `check_sizes`.
    """
    sizes = check_sizes(spec, lhs_shape, rhs_shape, gather)

    def squeezed(side: Operand, labels: str, shape: Shape) -> tuple[int, ...]:
        kept = gather.label if gather is not None and gather.operand == side else None
        return tuple(
            i for i, c in enumerate(labels) if shape[i] == 1 and sizes[c] != 1 and c != kept
        )

    lhs_dims, rhs_dims = squeezed("lhs", spec.lhs, lhs_shape), squeezed("rhs", spec.rhs, rhs_shape)
    lhs = "".join(c for i, c in enumerate(spec.lhs) if i not in lhs_dims)
    rhs = "".join(c for i, c in enumerate(spec.rhs) if i not in rhs_dims)
    return dataclasses.replace(spec, lhs=lhs, rhs=rhs), lhs_dims, rhs_dims


def symbolic(*sizes: object) -> bool:
    """Whether a size is no number but an expression, as in `jax.export` with symbolic shapes."""
    return not all(isinstance(size, numbers.Integral) for size in sizes)


@contextlib.contextmanager
def sizes_are_numbers(where: object, schedule: object) -> Iterator[None]:
    """Says in words that a schedule cannot split dimensions of symbolic sizes."""
    try:
        yield
    except jax.errors.InconclusiveDimensionOperation as error:
        raise ValueError(
            f"{where}: schedule {str(schedule)!r} splits dimensions, and has to compare sizes that are "
            "symbolic; choose 'auto' or 'blocking', which do not, or export for sizes that are "
            "numbers"
        ) from error


def axis_names(axis_name: str | tuple[str, ...]) -> tuple[str, ...]:
    """`axis_name` as a tuple, major axis first.

    Raises:
      ValueError: no axis, one that is not a string, or one named twice.
    """
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    if not isinstance(names, tuple | list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"axis_name must be a mesh axis name or a tuple of names, got {axis_name!r}"
        )
    if not names:
        raise ValueError("axis_name is empty; name at least one mesh axis")
    if len(set(names)) != len(names):
        raise ValueError(
            f"axis_name={axis_name!r} names an axis twice; each axis is gone around once"
        )
    return tuple(names)


def axis_size(axis_name: str | tuple[str, ...]) -> int:
    """The number of devices along `axis_name`, a product over a tuple, where those are manual.

    Raises:
      ValueError: an axis that no surrounding `shard_map` has made manual, and as `axis_names`.
    """
    return math.prod(_one_axis_size(name) for name in axis_names(axis_name))


def _one_axis_size(name: str) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    manual = tuple(mesh.manual_axes)
    # An axis of vmap has a size, too, but no devices.
    if name in manual:
        return lax.axis_size(name)
    if name in mesh.axis_names and manual:
        fix = f"add it to shard_map's axis_names, which has {manual!r}"
    else:
        fix = "call this inside jax.shard_map over a mesh with that axis"
    scope = ", ".join(repr(axis) for axis in manual) or "none"
    raise ValueError(f"axis {name!r} is not a manual mesh axis here; {fix}; axes in scope: {scope}")
