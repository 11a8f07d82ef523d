"""Mesh axes of type Explicit under a shard_map over others: the shardings of results, by label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ..spec import spec as specs


def explicit_axes() -> tuple[str, ...]:
    """The axes of the mesh in scope over which types say how arrays are sharded."""
    return tuple(jax.sharding.get_abstract_mesh().explicit_axes)


def on_auto_axes(function: Callable[..., Any], out_specs: Any, *operands: Any) -> Any:
    """`function(*operands)`, in which Explicit axes are Auto: it may slice any dimension anywhere.

    Args:
      function: of global arrays over the Explicit axes.
      out_specs: the PartitionSpecs of its results.
      operands: pytrees of arrays.
    """
    operands = jax.tree.map(jnp.asarray, operands)
    wrapped = jax.sharding.auto_axes(function, axes=explicit_axes(), out_sharding=out_specs)
    return wrapped(*operands)


def spec_of(x: Any) -> PartitionSpec:
    """The PartitionSpec of an array, or of the values of a `Quantized`, over Explicit axes."""
    return PartitionSpec(*jax.typeof(jnp.asarray(getattr(x, "values", x))).sharding.spec)


def einsum_spec(text: str, lhs: Any, rhs: Any) -> PartitionSpec:
    """The PartitionSpec of an einsum's result over Explicit axes: every label as in its operands.

    Raises:
      ValueError: a label that is summed over is sharded, one is sharded in two ways, or two over
        the same axis.
    """
    spec = specs.parse(text, lhs.shape, rhs.shape)
    entries: dict[str, Any] = {}
    for labels, x in ((spec.lhs, lhs), (spec.rhs, rhs)):
        for label, entry in zip(labels, spec_of(x), strict=True):
            if entry is not None and entries.setdefault(label, entry) != entry:
                raise ValueError(
                    f"einsum {spec}: label {label!r} is sharded over Explicit axes {entry!r} in "
                    f"one operand and {entries[label]!r} in the other; reshard one of them"
                )
    used: dict[str, str] = {}
    for label, entry in entries.items():
        if label not in spec.out:
            raise ValueError(
                f"einsum {spec}: label {label!r} is summed over and sharded over the Explicit axis "
                f"{entry!r}, so where to reduce is not said; reshard it, or make that axis manual "
                "(shard_map's axis_names) and name it here"
            )
        for axis in entry if isinstance(entry, tuple) else (entry,):
            if used.setdefault(axis, label) != label:
                raise ValueError(
                    f"einsum {spec}: labels {used[axis]!r} and {label!r} are both sharded over the "
                    f"Explicit axis {axis!r}; reshard one of them"
                )
    return PartitionSpec(*(entries.get(label) for label in spec.out))


def einsum_specs(text: str, lhs: Any, rhs: Any) -> Any:
    """`einsum_spec` for one rhs, or a list for a sequence of them."""
    if isinstance(rhs, Sequence):
        return [einsum_spec(text, lhs, right) for right in rhs]
    return einsum_spec(text, lhs, rhs)
