"""One step of an einsum of global arrays: two operands, whose collectives are inferred, or one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.typing import DTypeLike

from . import sharded_op as sharded
from .autodiff.primitive import vary
from .global_arrays import array_layouts as sharding
from .global_arrays.array_layouts import AnyMesh
from .global_arrays.infer_collectives import Layout
from .ops.request import Options
from .sharded_rules import run
from .spec import dtypes
from .spec import sizes as checks
from .spec.quantized import Quantized, split_scale
from .spec.spec import Spec

# An operand or a result, and how it is laid out.
Laid = tuple[jax.Array | Quantized, Layout]


@dataclasses.dataclass(frozen=True, eq=False)
class Pair:
    """An einsum of two operands, ready to run.

    Attributes:
      op: the einsum without scales, of labels that each stand in two of lhs, rhs and out, or in all.
      lhs, rhs: its operands.
      scales: those by which its result is multiplied.
      result: the dtype of the result.
    """

    op: sharded.Sharded
    lhs: jax.Array
    rhs: jax.Array
    scales: tuple[jax.Array, ...]
    result: DTypeLike

    def finished(self, y: jax.Array) -> jax.Array:
        """The result of `op` with the scales, in the dtype of the result."""
        layout = self.op.layouts[2]
        for scale in self.scales:
            of_scale = tuple(a if n > 1 else () for a, n in zip(layout, scale.shape, strict=True))
            y = y * sharding.laid_out(scale, of_scale, self.op.mesh).astype(y.dtype)
        return y.astype(self.result)


def results(einsums: Sequence[Pair | jax.Array]) -> list[jax.Array]:
    """The results of einsums, some of which may be there; neighbours that differ in their rhs alone
    share the collectives of lhs."""
    groups: list[list[Pair]] = []
    for one in einsums:
        if not isinstance(one, Pair):
            continue
        if groups and one.lhs is groups[-1][0].lhs and one.op == groups[-1][0].op:
            groups[-1].append(one)
        else:
            groups.append([one])
    found: list[jax.Array] = []
    for group in groups:
        raw = run(group[0].lhs, *(one.rhs for one in group), op=group[0].op)
        found += [one.finished(y) for one, y in zip(group, raw, strict=True)]
    ready = iter(found)
    return [next(ready) if isinstance(one, Pair) else one for one in einsums]


def prepared(
    text: str,
    terms: Sequence[str],
    out: str,
    operands: Sequence[Laid],
    mesh: AnyMesh,
    options: Options,
    asked: Layout | None,
    *,
    strict: bool,
) -> tuple[Pair | jax.Array, Layout]:
    """The einsum of two operands, ready to run, or zeros where a dimension has size 0; and its layout.

    The result is laid out as `asked`; by default so that every label keeps its axes, which `strict`
    allows only where that leaves no doubt.
    """
    spec = Spec(text, terms[0], terms[1], out)
    arrays, layouts = [x for x, _ in operands], [layout for _, layout in operands]
    sizes = checks.sizes_of(spec, terms, [x.shape for x in arrays])
    checked = dtypes.check_dtypes(
        spec,
        *arrays,
        terms=dtypes.summed_terms(spec, sizes),
        preferred_element_type=options.preferred_element_type,
        accumulator=options.accumulator_dtype,
    )
    scales = [
        split_scale(spec, labels, x, spec.out)[1]
        for x, labels in zip(arrays, (spec.lhs, spec.rhs), strict=True)
        if isinstance(x, Quantized)
    ]
    shape = tuple(sizes[label] for label in out)
    if 0 in sizes.values():
        layout = asked if asked is not None else sharding.kept(spec, *layouts)
        zeros = jnp.zeros(shape, checked.result)
        values = [sharding.values_of(x) for x in arrays]
        return put(vary((zeros, *values), ())[0], layout, mesh), layout
    # Scales come after the sums, so nothing is rounded before them.
    dtype = checked.accumulator if scales else checked.result
    simple, values, layouts = _simplified(spec, arrays, layouts, mesh, dtype)
    by_default = sharding.natural if strict else sharding.kept
    layout = asked if asked is not None else by_default(simple, *layouts)
    op_options = dataclasses.replace(
        options, preferred_element_type=dtype, accumulator_dtype=checked.accumulator
    )
    op = sharded.Sharded(
        simple,
        (layouts[0], layouts[1], layout),
        mesh,
        op_options,
        checked.result if scales else None,
    )
    lhs, rhs = values
    return Pair(op, lhs, rhs, tuple(scales), checked.result), layout


def single(
    text: str,
    terms: Sequence[str],
    out: str,
    operands: Sequence[Laid],
    mesh: AnyMesh,
    options: Options,
    asked: Layout | None,
    *,
    strict: bool,
) -> tuple[jax.Array, Layout]:
    """The einsum of one operand: sums, diagonals and another order; as `prepared`, never in doubt."""
    ((x, layout),), name = operands, repr(text)
    x = x.dequantize() if isinstance(x, Quantized) else x
    sizes = checks.sizes_of(name, terms, [x.shape])
    terms_summed = 1
    for label, size in sizes.items():
        terms_summed *= 1 if label in out else size
    checked = dtypes.check_dtypes(
        name,
        x,
        terms=terms_summed,
        preferred_element_type=options.preferred_element_type,
        accumulator=options.accumulator_dtype,
    )
    y, labels, at = _plain(x, terms[0], layout, (), out, mesh, checked.accumulator)
    order = [labels.index(label) for label in out]
    y = lax.transpose(y, order).astype(checked.result)
    natural = tuple(at[i] for i in order)
    wanted = asked if asked is not None else natural
    return put(y, wanted, mesh), wanted


def put(x: jax.Array, layout: Layout, mesh: AnyMesh) -> jax.Array:
    """`x` laid out on the mesh; on Explicit axes, by its type."""
    if sharding.axes_of_type(mesh, AxisType.Explicit):
        return sharding.laid_out(x, layout, mesh)
    if not sharding.axes_of_type(mesh, AxisType.Auto):
        return x
    where = sharding.partition_spec(layout)
    known = isinstance(mesh, Mesh) or jax.sharding.get_abstract_mesh().empty
    return lax.with_sharding_constraint(x, NamedSharding(mesh, where) if known else where)


def _simplified(
    spec: Spec,
    operands: Sequence[jax.Array | Quantized],
    layouts: Sequence[Layout],
    mesh: AnyMesh,
    dtype: DTypeLike,
) -> tuple[Spec, list[jax.Array], list[Layout]]:
    """The einsum with each label in two of lhs, rhs and out, or in all, and once in each.

    Size-1 dimensions that broadcast are squeezed out, diagonals are taken, and labels of one operand
    alone are summed over, in `dtype`.
    """
    values = [sharding.values_of(x) for x in operands]
    squeezed, *drops = checks.squeeze_broadcasts(spec, values[0].shape, values[1].shape)
    simplified = []
    for side, (drop, layout) in enumerate(zip(drops, layouts, strict=True)):
        others = (squeezed.lhs, squeezed.rhs)[1 - side] + spec.out
        labels = (spec.lhs, spec.rhs)[side]
        simplified.append(_plain(values[side], labels, layout, drop, others, mesh, dtype))
    (lhs, left, at), (rhs, right, there) = simplified
    return dataclasses.replace(spec, lhs=left, rhs=right), [lhs, rhs], [at, there]


def _plain(
    x: jax.Array,
    term: str,
    layout: Layout,
    drop: Sequence[int],
    others: str,
    mesh: AnyMesh,
    dtype: DTypeLike,
) -> tuple[jax.Array, str, Layout]:
    """An operand without the dimensions `drop`, its diagonals taken, and labels that are not among
    `others` summed over in `dtype`; its labels and layout."""
    labels = "".join(c for d, c in enumerate(term) if d not in drop)
    kept = [d not in drop and term.count(c) == 1 for d, c in enumerate(term)]
    plain = tuple(axes if keep else () for axes, keep in zip(layout, kept, strict=True))
    if plain != layout or jax.typeof(x).sharding.mesh.empty:
        x = sharding.laid_out(x, plain, mesh)
    x, axes = lax.squeeze(x, drop), [a for d, a in enumerate(plain) if d not in drop]
    for j in reversed(range(len(labels))):
        i = labels.index(labels[j])
        if i < j:
            x, labels = _diagonal(x, i, j), labels[:j] + labels[j + 1 :]
            del axes[j]
            # jax's types forget the axes of dimensions of size 1.
            x = sharding.laid_out(x, tuple(axes), mesh)
    alone = [d for d, c in enumerate(labels) if c not in others]
    if alone:
        x = jnp.sum(x.astype(dtype), axis=alone)
    left = [d for d in range(len(labels)) if d not in alone]
    return x, "".join(labels[d] for d in left), tuple(axes[d] for d in left)


def _diagonal(x: jax.Array, i: int, j: int) -> jax.Array:
    """The diagonal of dimensions i and j, of one size and not sharded, in the place of i."""
    n = x.shape[i]
    x = jnp.moveaxis(x, (i, j), (-2, -1))
    x = x.reshape(*x.shape[:-2], n * n)
    # A strided slice: no arithmetic, and integers stay integers.
    return jnp.moveaxis(x[..., :: n + 1], -1, i)
