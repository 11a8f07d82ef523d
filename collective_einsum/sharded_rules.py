"""How einsums of sharded global arrays differentiate and batch: as such einsums again."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, AxisType, NamedSharding

from .autodiff.bilinear import dots, tangents
from .autodiff.primitive import Rules, apply, register
from .execution.product import fresh_label
from .global_arrays.array_layouts import axes_of_type, laid_out, partition_spec
from .global_arrays.infer_collectives import Axes, Layout
from .ops.schedule import as_schedule
from .sharded_op import Sharded


@functools.partial(jax.jit, static_argnames="op", inline=True)
def run(*operands: jax.Array, op: Sharded) -> list[jax.Array]:
    """The results; compiled where the caller is not."""
    results = apply(op, *operands)
    if isinstance(op.mesh, AbstractMesh) or axes_of_type(op.mesh, AxisType.Explicit):
        return results
    # Without Explicit types or a mesh in the context, jit looks for a mesh in what it traces.
    where = NamedSharding(op.mesh, partition_spec(op.layouts[2]))
    return [lax.with_sharding_constraint(y, where) for y in results]


def _transpose(op: Sharded, cotangents: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """The einsums with the result and one operand exchanged; see `primitive.Rules`."""
    lhs, rhs, _ = op.split(operands)
    spec, (left, right, out) = op.spec, op.layouts
    several = "sum" if op.form == "shared_lhs" and len(rhs) > 1 else "shared_lhs"
    if any(x is None for x in lhs):
        mirrored = dataclasses.replace(
            op,
            spec=dataclasses.replace(spec, lhs=spec.out, out=spec.lhs),
            layouts=(out, right, left),
            form=several,
        )
        return [*_derived(mirrored, *cotangents, *rhs), *(None for _ in rhs)]
    wanted = [x is None for x in rhs]
    if op.form == "shared_lhs":
        mirrored = dataclasses.replace(
            op,
            spec=dataclasses.replace(spec, rhs=spec.out, out=spec.rhs),
            layouts=(left, out, right),
        )
        first, others = lhs[0], cotangents
    else:
        mirrored = dataclasses.replace(
            op,
            spec=dataclasses.replace(spec, lhs=spec.out, rhs=spec.lhs, out=spec.rhs),
            layouts=(out, left, right),
            form="shared_lhs",
        )
        first, others = cotangents[0], lhs
    chosen = [x for x, is_wanted in zip(others, wanted, strict=True) if is_wanted]
    results = iter(_derived(mirrored, first, *chosen))
    of_rhs = [next(results) if is_wanted else None for is_wanted in wanted]
    return [*(None for _ in lhs), *of_rhs]


def _derived(op: Sharded, *operands: jax.Array) -> list[jax.Array]:
    """The results; under "auto" if the schedule serves only what this is derived from."""
    if as_schedule(op.options.schedule) is not None:
        try:
            jax.eval_shape(op.run, operands)
        except ValueError:
            op = dataclasses.replace(op, options=dataclasses.replace(op.options, schedule="auto"))
    return apply(op, *operands)


def _batched(
    op: Sharded, dims: Sequence[int | None], operands: Sequence[Any], over: tuple[str, ...]
) -> tuple[Sharded, list[Any]]:
    """A new label, in front, sharded over the axes of `over`; see `primitive.Rules`."""
    new = fresh_label(op.spec.lhs + op.spec.rhs)
    size = next(x.shape[d] for d, x in zip(dims, operands, strict=True) if d is not None)
    # A shard_map around this has divided its batch over manual axes already.
    over = tuple(axis for axis in over if axis not in axes_of_type(op.mesh, AxisType.Manual))
    _check_batch(op, size, over)
    lhs, rhs, _ = op.split(tuple(zip(dims, operands, strict=True)))
    left, right, out = op.layouts
    lefts, of_left = _side(op, lhs, left, size, over)
    rights, of_right = _side(op, rhs, right, size, over)
    terms = [
        labels if axes is None else new + labels
        for axes, labels in ((of_left, op.spec.lhs), (of_right, op.spec.rhs))
    ]
    spec = dataclasses.replace(op.spec, lhs=terms[0], rhs=terms[1], out=new + op.spec.out)
    layouts = (
        left if of_left is None else (of_left, *left),
        right if of_right is None else (of_right, *right),
        (of_left or of_right or (), *out),
    )
    return dataclasses.replace(op, spec=spec, layouts=layouts), [*lefts, *rights]


def _side(
    op: Sharded,
    pairs: Sequence[tuple[int | None, Any]],
    layout: Layout,
    size: int,
    over: tuple[str, ...],
) -> tuple[list[Any], Axes | None]:
    """The operands of one side of the einsum, all with the batch in front if one of them has it, and the
    axes that shard it there; None if none has it."""
    mapped = [jnp.moveaxis(x, d, 0) for d, x in pairs if d is not None]
    if not mapped:
        return [x for _, x in pairs], None
    # On Explicit axes the type of an operand says how the new dimension is sharded.
    axes = over or _leading_axes(mapped[0])
    moved = iter(mapped)
    values = []
    for d, x in pairs:
        if d is None:
            x = jnp.broadcast_to(x, (size, *x.shape))
            values.append(laid_out(x, (axes, *layout), op.mesh))
        else:
            values.append(next(moved))
    return values, axes


def _check_batch(op: Sharded, size: int, over: tuple[str, ...]) -> None:
    """Raises ValueError if the batch of a vmap cannot be sharded over its spmd_axis_name."""
    where = f"einsum {op.spec}, under a vmap of {size} with spmd_axis_name={over}"
    sizes = dict(op.mesh.shape_tuple)
    used = {axis for layout in op.layouts for axes in layout for axis in axes}
    for axis in over:
        if axis not in sizes:
            raise ValueError(f"{where}: the mesh has no axis {axis!r}, only {tuple(sizes)}")
        if axis in used:
            raise ValueError(
                f"{where}: axis {axis!r} shards a dimension already; leave it out of in_specs "
                "and out_sharding, or give vmap another spmd_axis_name"
            )
    n = math.prod(sizes[axis] for axis in over)
    if size % n:
        raise ValueError(
            f"{where}: {n} devices do not divide the batch; pad it to {-(-size // n) * n}"
        )


def _leading_axes(x: jax.Array) -> tuple[str, ...]:
    entry = jax.typeof(x).sharding.spec[0]
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


register(
    Sharded,
    Rules(
        run=Sharded.run,
        tangents=tangents,
        transpose=_transpose,
        batched=_batched,
        dots=dots,
    ),
)
