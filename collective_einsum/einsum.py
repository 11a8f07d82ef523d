"""An einsum of global arrays: the collectives are told from the shardings."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from . import checks, collectives, dtypes, einsums, inference, quantized, sharding
from . import spec as specs
from .chip import Chip
from .einsums import Options
from .inference import Case, Change, Layout, Plan
from .operation import fresh_label
from .primitive import apply, checks_vma, vary
from .quantized import Quantized
from .schedule import Schedule, as_schedule
from .sharding import AnyMesh
from .spec import Spec


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
    chip: Chip | None = None,
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
    collectives of ring steps. Derivatives are einsums by the same rules, with the operands as their
    only residuals, and `vmap` adds a label that is not sharded, or as the Explicit type says.
    Sums and tolerances are those of the einsums named.

    Args:
      spec: an einsum of two operands; `...` and an implicit output are allowed.
      lhs: a global array, or a `Quantized`.
      rhs: likewise.
      mesh: where the axes are; by default that of the context (`jax.set_mesh`), of `out_sharding`
        or of the operands' types.
      in_specs: the PartitionSpecs of lhs and rhs, needed if the mesh has Auto axes. That of a
        `Quantized` is the one of the array it stands for.
      out_sharding: of the result. By default every label keeps its axes, where that leaves no doubt.
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
        parsed, lhs, rhs,
        terms=dtypes.summed_terms(parsed, sizes),
        preferred_element_type=preferred_element_type,
        accumulator=accumulator_dtype,
    )
    mesh = sharding.find_mesh(parsed, mesh, (lhs, rhs), out_sharding)
    layouts = sharding.operand_layouts(parsed, (lhs, rhs), in_specs, mesh)
    scales = [
        quantized.split_scale(parsed, labels, x, parsed.out)[1]
        for x, labels in ((lhs, parsed.lhs), (rhs, parsed.rhs))
        if isinstance(x, Quantized)
    ]
    # Scales come after the sums, so nothing is rounded before them.
    dtype = found.accumulator if scales else found.result
    simple, operands, layouts = _simplified(parsed, sizes, (lhs, rhs), layouts, mesh, dtype)
    shape = tuple(sizes[label] for label in parsed.out)
    out = sharding.result_layout(simple, out_sharding, shape, *layouts, mesh)
    options = Options(schedule, precision, dtype, found.accumulator, wire_dtype, chip)
    op = _Sharded(simple, (*layouts, out), mesh, options, found.result if scales else None)
    y = _run(*vary(operands, ()), op=op)
    for scale in scales:
        y = y * _laid_out(scale, out, mesh).astype(y.dtype)
    return y.astype(found.result)


def _sizes(spec: Spec, lhs_shape: Sequence[int], rhs_shape: Sequence[int]) -> dict[str, int]:
    """The size of each label, where 1 broadcasts."""
    left, right = dict(zip(spec.lhs, lhs_shape)), dict(zip(spec.rhs, rhs_shape))  # noqa: B905
    for label in left.keys() & right.keys():
        if 1 not in (left[label], right[label]) and left[label] != right[label]:
            raise ValueError(
                f"einsum {spec}: label {label!r} is {left[label]} in lhs, of shape {lhs_shape}, and "
                f"{right[label]} in rhs, of shape {rhs_shape}; the global sizes must be equal"
            )
    return checks.check_sizes(spec, lhs_shape, rhs_shape)


def _simplified(
    spec: Spec,
    sizes: dict[str, int],
    operands: tuple[Any, Any],
    layouts: tuple[Layout, Layout],
    mesh: AnyMesh,
    dtype: Any,
) -> tuple[Spec, list[Any], tuple[Layout, Layout]]:
    """The einsum with every label in two of lhs, rhs and out, and once in each.

    Size-1 dimensions that broadcast are squeezed out, diagonals taken, and labels that stand in one
    operand alone summed over.
    """
    terms, values, found = [spec.lhs, spec.rhs], list(map(sharding.values_of, operands)), []
    for side in range(2):
        wide = [d for d, c in enumerate(terms[side]) if values[side].shape[d] not in (1, sizes[c])]
        del wide
    squeezed, *drops = checks.squeeze_broadcasts(spec, values[0].shape, values[1].shape)
    terms = [squeezed.lhs, squeezed.rhs]
    for side, (drop, layout) in enumerate(zip(drops, layouts, strict=True)):
        labels, other = terms[side], terms[1 - side]
        x = lax.squeeze(values[side], drop)
        by_dim = [axes for d, axes in enumerate(layout) if d not in drop]
        repeated = {c for c in labels if labels.count(c) > 1}
        for label in sorted(repeated):
            by_dim = [() if c == label else axes for c, axes in zip(labels, by_dim, strict=True)]
            x = _laid_out(x, tuple(by_dim), mesh)
            while labels.count(label) > 1:
                i, j = labels.index(label), labels.rindex(label)
                x = _diagonal(x, i, j)
                labels, by_dim = labels[:j] + labels[j + 1 :], by_dim[:j] + by_dim[j + 1 :]
        alone = [d for d, c in enumerate(labels) if c not in other and c not in spec.out]
        if alone:
            x = jnp.sum(x.astype(dtype), axis=tuple(alone))
        terms[side] = "".join(c for d, c in enumerate(labels) if d not in alone)
        found.append(tuple(axes for d, axes in enumerate(by_dim) if d not in alone))
        values[side] = x
    simple = dataclasses.replace(spec, lhs=terms[0], rhs=terms[1])
    return simple, values, (found[0], found[1])
