"""An einsum of global arrays: the collectives are told from the shardings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from . import checks, dtypes, sharded, sharding
from . import spec as specs
from .chip import Chip
from .inference import Layout
from .problem import Options
from .quantized import Quantized, split_scale
from .schedule import Schedule
from .sharding import AnyMesh
from .spec import Shape, Spec


def einsum(
    spec: str,
    lhs: Any,
    rhs: Any,
    *,
    mesh: AnyMesh | None = None,
    in_specs: tuple[PartitionSpec, PartitionSpec] | None = None,
    out_sharding: PartitionSpec | NamedSharding | None = None,
    schedule: str | Schedule = "auto",
    precision: Any = None,
    preferred_element_type: Any = None,
    accumulator_dtype: Any = None,
    wire_dtype: Any = None,
    chip: Chip | str | None = None,
) -> jax.Array:
    """`jnp.einsum(spec, lhs, rhs, out_sharding=out_sharding)` with its collectives hidden.

    Takes global arrays, from jit or not, and also where an outer `shard_map` has made other axes of
    the mesh manual. Each mesh axis that shards something decides for itself what it needs:

    - the same label in both operands: nothing before the einsum; if the label is summed over, a
      reduce-scatter onto the label that the axis shards in the result, or an all-reduce;
    - a label of one operand, which the other operand (if it has the label) and the result do not
      shard: an all-gather of that operand;
    - different labels in the two operands: an all-gather, or an all-to-all, of the operand whose
      label the result does not shard; if it shards neither, whatever moves the fewest bytes;
    - a label of the result and of no operand: a local slice.

    One gather, the largest, and one scatter are hidden behind the einsum (see `all_gather_einsum`
    and `all_gather_einsum_reduce_scatter`); what is left over goes before and after it as
    collectives of ring steps, and an order of axes that differs as one permutation of shards.
    Sums and tolerances are those of the einsums named.

    Derivatives are einsums by the same rules and under the same schedule, or "auto" where that
    cannot serve them, with the operands as their only residuals. `vmap` adds a label that is not
    sharded, or as its Explicit type says.

    Args:
      spec: an einsum of two operands; `...` and an implicit output are allowed.
      lhs: a global array, or a `Quantized`.
      rhs: likewise.
      mesh: where the axes are; by default that of the context (`jax.set_mesh`), of `out_sharding`
        or of the operands' types.
      in_specs: the PartitionSpecs of lhs and rhs, needed if the mesh has Auto axes. That of a
        `Quantized` is the one of the array it stands for.
      out_sharding: of the result. By default every label keeps its axes, if that leaves no doubt.
      schedule, precision, preferred_element_type, accumulator_dtype, wire_dtype, chip: as
        `all_gather_einsum`.

    Returns:
      The global result, sharded as asked; on a mesh with Explicit axes, its type says so.

    Raises:
      ValueError: while tracing, for anything that does not fit, in words.
    """
    lhs, rhs = (x if isinstance(x, Quantized) else jnp.asarray(x) for x in (lhs, rhs))
    parsed = specs.parse(spec, lhs.shape, rhs.shape)
    sizes = _sizes(parsed, lhs.shape, rhs.shape)
    found = dtypes.check_dtypes(
        parsed,
        lhs,
        rhs,
        terms=dtypes.summed_terms(parsed, sizes),
        preferred_element_type=preferred_element_type,
        accumulator=accumulator_dtype,
    )
    mesh = sharding.find_mesh(parsed, mesh, (lhs, rhs), out_sharding)
    layouts = sharding.operand_layouts(parsed, (lhs, rhs), in_specs, mesh)
    scales = [
        split_scale(parsed, labels, x, parsed.out)[1]
        for x, labels in ((lhs, parsed.lhs), (rhs, parsed.rhs))
        if isinstance(x, Quantized)
    ]
    # Scales come after the sums, so nothing is rounded before them.
    dtype = found.accumulator if scales else found.result
    simple, operands, layouts = _simplified(parsed, (lhs, rhs), layouts, mesh, dtype)
    shape = tuple(sizes[label] for label in parsed.out)
    out = sharding.result_layout(simple, out_sharding, shape, *layouts, mesh)
    options = Options(schedule, precision, dtype, found.accumulator, wire_dtype, chip=chip)
    op = sharded.Sharded(simple, (*layouts, out), mesh, options, found.result if scales else None)
    y = sharded.run(*operands, op=op)
    for scale in scales:
        of_scale = tuple(a if n > 1 else () for a, n in zip(out, scale.shape, strict=True))
        y = y * _laid_out(scale, of_scale, mesh).astype(y.dtype)
    return y.astype(found.result)


def _sizes(spec: Spec, lhs_shape: Shape, rhs_shape: Shape) -> dict[str, int]:
    """The size of each label; 1 gives way to any other."""
    left = dict(zip(spec.lhs, lhs_shape, strict=True))
    right = dict(zip(spec.rhs, rhs_shape, strict=True))
    for label in spec.labels:
        both = {left.get(label, 1), right.get(label, 1)} - {1}
        if len(both) > 1:
            raise ValueError(
                f"einsum {spec}: label {label!r} is {left[label]} in lhs, of shape {lhs_shape}, "
                f"and {right[label]} in rhs, of shape {rhs_shape}; global sizes must be equal"
            )
        if 0 in both:
            raise ValueError(
                f"einsum {spec}: label {label!r} has size 0, which leaves nothing to compute in "
                "shards; use jnp.einsum"
            )
    return checks.check_sizes(spec, lhs_shape, rhs_shape)


def _simplified(
    spec: Spec,
    operands: tuple[Any, Any],
    layouts: tuple[Layout, Layout],
    mesh: AnyMesh,
    dtype: Any,
) -> tuple[Spec, list[Any], tuple[Layout, Layout]]:
    """The einsum with each label in two of lhs, rhs and out, or in all, and once in each.

    Size-1 dimensions that broadcast are squeezed out, diagonals are taken, and what only one
    operand has is summed over, in `dtype`.
    """
    values = [sharding.values_of(x) for x in operands]
    squeezed, *drops = checks.squeeze_broadcasts(spec, values[0].shape, values[1].shape)
    terms, found = [squeezed.lhs, squeezed.rhs], []
    for side, (drop, layout) in enumerate(zip(drops, layouts, strict=True)):
        x, labels, whole = values[side], terms[side], (spec.lhs, spec.rhs)[side]
        kept = [d not in drop and whole.count(c) == 1 for d, c in enumerate(whole)]
        plain = tuple(each if keep else () for each, keep in zip(layout, kept, strict=True))
        if plain != layout or jax.typeof(x).sharding.mesh.empty:
            x = _laid_out(x, plain, mesh)
        x, axes = lax.squeeze(x, drop), [each for d, each in enumerate(plain) if d not in drop]
        for j in reversed(range(len(labels))):
            i = labels.index(labels[j])
            if i < j:
                x, labels = _diagonal(x, i, j), labels[:j] + labels[j + 1 :]
                del axes[j]
        alone = [d for d, c in enumerate(labels) if c not in terms[1 - side] + spec.out]
        if alone:
            x = jnp.sum(x.astype(dtype), axis=alone)
        values[side] = x
        terms[side] = "".join(c for d, c in enumerate(labels) if d not in alone)
        found.append(tuple(each for d, each in enumerate(axes) if d not in alone))
    simple = dataclasses.replace(spec, lhs=terms[0], rhs=terms[1])
    return simple, values, (found[0], found[1])


def _diagonal(x: Any, i: int, j: int) -> Any:
    """The diagonal of dimensions i and j, of one size and not sharded, in the place of i."""
    n = x.shape[i]
    x = jnp.moveaxis(x, (i, j), (-2, -1))
    x = x.reshape(*x.shape[:-2], n * n)
    # A strided slice: no arithmetic, and integers stay integers.
    return jnp.moveaxis(x[..., :: n + 1], -1, i)


def _laid_out(x: Any, layout: Layout, mesh: AnyMesh) -> Any:
    """`x` with the type of `layout` on Explicit axes."""
    explicit = sharding.axes_of_type(mesh, AxisType.Explicit)
    if not explicit:
        return x
    axes = tuple(tuple(axis for axis in each if axis in explicit) for each in layout)
    return jax.reshard(x, NamedSharding(mesh, sharding.partition_spec(axes)))
