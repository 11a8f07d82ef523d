"""An einsum of sharded global arrays as an op of the primitive, with derivatives of its own."""

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

from . import collectives, schedule_and_run
from .autodiff.primitive import Dot, Rules, apply, register, vary
from .execution.product import dimension_numbers, fresh_label
from .global_arrays.array_layouts import AnyMesh, axes_of_type, partition_spec
from .global_arrays.infer_collectives import Case, Change, Layout, Plan, infer
from .ops.request import Options
from .ops.schedule import Schedule, as_schedule
from .rings.permutes import reorder_shards
from .spec.spec import Spec


@dataclasses.dataclass(frozen=True)
class Sharded:
    """An einsum of two global arrays, but for the arrays; hashable.

    Attributes:
      spec: each label stands in two of lhs, rhs and out, or in all, and once in each.
      layouts: of lhs, rhs and out.
      mesh: the mesh of the layouts.
      options: with `preferred_element_type`, the dtype of the result.
      sums: the dtype in which sums are sent where `options.wire_dtype` is None; None for the result's.
    """

    spec: Spec
    layouts: tuple[Layout, Layout, Layout]
    mesh: AnyMesh
    options: Options
    sums: Any = None

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes of the surroundings that it communicates over: none, only its own."""
        return ()

    @property
    def summed(self) -> tuple[str, ...]:
        """As `axes`."""
        return ()

    def plan(self, lhs: jax.Array, rhs: jax.Array) -> Plan:
        """The collectives for global operands of these shapes and dtypes."""
        sizes = dict(zip(self.spec.lhs + self.spec.rhs, (*lhs.shape, *rhs.shape), strict=True))
        dtype = jnp.dtype(self.options.preferred_element_type)
        widths = (lhs.dtype.itemsize, rhs.dtype.itemsize, dtype.itemsize)
        return infer(Case(self.spec, sizes, widths, dict(self.mesh.shape_tuple), *self.layouts))

    def run(self, operands: Sequence[jax.Array]) -> list[jax.Array]:
        """The result, as a list of one."""
        lhs, rhs = operands
        plan = self.plan(lhs, rhs)
        body = functools.partial(self._local, plan)
        manual = axes_of_type(self.mesh, AxisType.Manual)
        if len(manual) == len(self.mesh.axis_names):
            return [body(lhs, rhs)]
        *in_specs, out_spec = map(partition_spec, self.layouts)
        y = jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=tuple(in_specs),
            out_specs=out_spec,
            check_vma=self._is_checkable(plan),
        )(lhs, rhs)
        # An unchecked shard_map forgets over what its operands vary outside.
        return vary((y, lhs, rhs), ())[:1]

    def _is_checkable(self, plan: Plan) -> bool:
        """Whether jax can see that the result is equal along the axes which its layout leaves out.

        It cannot where the reason is an all-gather.
        """
        lhs, rhs, out = ({axis for axes in layout for axis in axes} for layout in self.layouts)
        slices = [s for change in (plan.lhs, plan.rhs) for s in change.early + change.late]
        sliced = {axis for _, axes in slices for axis in axes}
        return lhs | rhs | sliced <= out | set(plan.reduced)

    def _local(self, plan: Plan, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        """The einsum on local shards."""
        options = self.options
        lhs, rhs = self._changed(lhs, plan.lhs), self._changed(rhs, plan.rhs)
        fused = plan.fused
        wire = options.wire_dtype or getattr(options.schedule, "wire_dtype", None)
        if wire is None and (fused.gather is None or fused.scatter is not None):
            options = dataclasses.replace(options, wire_dtype=self.sums)
        y = schedule_and_run.run(self.spec.formula, lhs, rhs, fused, options)
        for dim, axes in plan.scatters:
            y = collectives.reduce_scatter(
                y, axes, scatter_dimension=dim, **self._collective_options()
            )
        if plan.reduce:
            y = collectives.all_reduce(y, plan.reduce, **self._collective_options())
        return self._changed(y, plan.out)

    def _changed(self, x: jax.Array, change: Change) -> jax.Array:
        for axes, split, join in change.swaps:
            x = collectives.all_to_all(x, axes, split, join, **self._collective_options())
        for dim, axes in change.early:
            x = _own_block(x, dim, axes)
        for _, have, want in change.sorts:
            x = reorder_shards(x, have, want)
        for dim, axes in change.gathers:
            x = collectives.all_gather(x, axes, axis=dim, **self._collective_options())
        for dim, axes in change.late:
            x = _own_block(x, dim, axes)
        for _, have, want in change.resorts:
            x = reorder_shards(x, have, want)
        return x

    def _collective_options(self) -> dict[str, Any]:
        """The schedule and chip of a collective that overlaps with no einsum."""
        schedule = as_schedule(self.options.schedule)
        if schedule is not None and schedule.direction == "async":
            schedule = Schedule("chunked", "async")
        elif schedule is not None and schedule.kind != "blocking":
            schedule = Schedule("ring", schedule.direction, rolled=schedule.rolled)
        return {"schedule": schedule or "auto", "chip": self.options.chip}


def _tangents(op: Sharded, operands: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
    """One term for each operand that moves; see `primitive.Rules`."""
    (lhs, rhs), (dlhs, drhs) = operands, tangents
    pairs = [(dlhs, rhs), (lhs, drhs)]
    terms = [apply(op, *pair)[0] for pair in pairs if all(x is not None for x in pair)]
    return [sum(terms[1:], start=terms[0])]


def _transpose(op: Sharded, cotangents: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
    """The einsum with the result and one operand exchanged; see `primitive.Rules`."""
    ((ct,), (lhs, rhs)), spec = (cotangents, operands), op.spec
    left, right, out = op.layouts
    if lhs is None:
        spec = dataclasses.replace(spec, lhs=spec.out, out=spec.lhs)
        mirrored = dataclasses.replace(op, spec=spec, layouts=(out, right, left))
        return [_derived(mirrored, ct, rhs), None]
    spec = dataclasses.replace(spec, rhs=spec.out, out=spec.rhs)
    mirrored = dataclasses.replace(op, spec=spec, layouts=(left, out, right))
    return [None, _derived(mirrored, lhs, ct)]


def _batched(
    op: Sharded, dims: Sequence[int | None], operands: Sequence[Any], over: tuple[str, ...]
) -> tuple[Sharded, list[Any]]:
    """A new label, in front, sharded over the axes of `over`; see `primitive.Rules`."""
    new = fresh_label(op.spec.lhs + op.spec.rhs)
    pairs = list(zip(dims, operands, strict=True))
    moved = [x if d is None else jnp.moveaxis(x, d, 0) for d, x in pairs]
    terms = [
        labels if d is None else new + labels
        for d, labels in zip(dims, (op.spec.lhs, op.spec.rhs), strict=True)
    ]
    spec = dataclasses.replace(op.spec, lhs=terms[0], rhs=terms[1], out=new + op.spec.out)
    size = next(x.shape[0] for d, x in zip(dims, moved, strict=True) if d is not None)
    # A shard_map around this has divided its batch over manual axes already.
    over = tuple(axis for axis in over if axis not in axes_of_type(op.mesh, AxisType.Manual))
    _check_batch(op, size, over)
    # On Explicit axes the type of an operand says how the new dimension is sharded.
    axes = [() if d is None else over or _leading_axes(x) for d, x in zip(dims, moved, strict=True)]
    left, right, out = op.layouts
    layouts = (
        left if dims[0] is None else (axes[0], *left),
        right if dims[1] is None else (axes[1], *right),
        (axes[0] or axes[1], *out),
    )
    return dataclasses.replace(op, spec=spec, layouts=layouts), moved


def _dots(op: Sharded, operands: Sequence[Any]) -> list[Dot]:
    """The einsum; see `primitive.Rules`."""
    numbers = dimension_numbers(op.spec.lhs, op.spec.rhs, op.spec.out)
    return [(operands[0], operands[1], numbers)]


def _derived(sharded: Sharded, lhs: jax.Array, rhs: jax.Array) -> jax.Array:
    """The result; under "auto" if the schedule serves only what this is derived from."""
    op = sharded
    if as_schedule(sharded.options.schedule) is not None:
        try:
            jax.eval_shape(sharded.run, (lhs, rhs))
        except ValueError:
            op = dataclasses.replace(
                sharded, options=dataclasses.replace(sharded.options, schedule="auto")
            )
    return apply(op, lhs, rhs)[0]


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


register(
    Sharded,
    Rules(
        run=Sharded.run,
        tangents=_tangents,
        transpose=_transpose,
        batched=_batched,
        dots=_dots,
    ),
)


def _leading_axes(x: jax.Array) -> tuple[str, ...]:
    entry = jax.typeof(x).sharding.spec[0]
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _own_block(x: jax.Array, dim: int, axes: tuple[str, ...]) -> jax.Array:
    """This device's block of a dimension, of which it has more."""
    block = x.shape[dim] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * block, block, axis=dim)


@functools.partial(jax.jit, static_argnames="op", inline=True)
def run(lhs: jax.Array, rhs: jax.Array, op: Sharded) -> jax.Array:
    """The result; compiled where the caller is not."""
    y = apply(op, lhs, rhs)[0]
    if isinstance(op.mesh, AbstractMesh) or axes_of_type(op.mesh, AxisType.Explicit):
        return y
    # Without Explicit types or a mesh in the context, jit looks for a mesh in what it traces.
    return lax.with_sharding_constraint(y, NamedSharding(op.mesh, partition_spec(op.layouts[2])))
