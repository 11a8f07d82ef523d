"""Einsums of sharded global arrays as an op of the primitive; `sharded_rules` has its derivatives."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

from . import collectives, schedule_and_run
from .autodiff.primitive import vary
from .global_arrays.array_layouts import AnyMesh, axes_of_type, partition_spec
from .global_arrays.infer_collectives import Case, Change, Layout, Plan, infer
from .ops.einsum_op import Form, products, split
from .ops.request import Options
from .ops.schedule import Schedule, as_schedule
from .rings.permutes import reorder_shards
from .spec.spec import Spec

Operand = TypeVar("Operand")


@dataclasses.dataclass(frozen=True)
class Sharded:
    """Einsums of two global arrays each, but for the arrays; hashable.

    They have one lhs and a result for each rhs, or are added up: the forms of `ops.einsum_op`. Where all
    need the same collectives, they share that of lhs, or that of the sum.

    Attributes:
      spec: each label stands in two of lhs, rhs and out, or in all, and once in each.
      layouts: of lhs, rhs and out.
      mesh: the mesh of the layouts.
      options: with `preferred_element_type`, the dtype of the result.
      sums: the dtype in which sums are sent where `options.wire_dtype` is None; None for the result's.
      form: "shared_lhs" or "sum".
    """

    spec: Spec
    layouts: tuple[Layout, Layout, Layout]
    mesh: AnyMesh
    options: Options
    sums: Any = None
    form: Form = "shared_lhs"

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes of the surroundings that it communicates over: none, only its own."""
        return ()

    @property
    def summed(self) -> tuple[str, ...]:
        """As `axes`."""
        return ()

    @property
    def labels(self) -> tuple[str, str, str]:
        """Those of lhs, rhs and the result."""
        return self.spec.lhs, self.spec.rhs, self.spec.out

    def plan(self, lhs: jax.Array, rhs: jax.Array) -> Plan:
        """The collectives for global operands of these shapes and dtypes."""
        sizes = dict(zip(self.spec.lhs + self.spec.rhs, (*lhs.shape, *rhs.shape), strict=True))
        dtype = jnp.dtype(self.options.preferred_element_type)
        widths = (lhs.dtype.itemsize, rhs.dtype.itemsize, dtype.itemsize)
        return infer(Case(self.spec, sizes, widths, dict(self.mesh.shape_tuple), *self.layouts))

    def split(
        self, operands: Sequence[Operand]
    ) -> tuple[list[Operand], list[Operand], list[Operand]]:
        """Every lhs and every rhs of the operands in this order, and no scales."""
        return split(self.form, operands)

    def run(self, operands: Sequence[jax.Array]) -> list[jax.Array]:
        """The results, one for each rhs; the only one of a sum."""
        lhs, rhs, _ = self.split(operands)
        pairs = products(self.form, lhs, rhs)
        plan, *others = {self.plan(*pair) for pair in pairs}
        if not others and not (self.form == "sum" and plan.fused.gather is not None):
            return self._on_shards(plan, lhs, rhs)
        alone = dataclasses.replace(self, form="shared_lhs")
        results = [y for a, b in pairs for y in alone.run([a, b])]
        return results if self.form == "shared_lhs" else [functools.reduce(jnp.add, results)]

    def _on_shards(self, plan: Plan, lhs: list[jax.Array], rhs: list[jax.Array]) -> list[jax.Array]:
        """The results, with the collectives of `plan`."""
        body = functools.partial(self._local, plan)
        manual = axes_of_type(self.mesh, AxisType.Manual)
        if len(manual) == len(self.mesh.axis_names):
            return body(lhs, rhs)
        left, right, out = map(partition_spec, self.layouts)
        results = jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=(left, right),
            out_specs=out,
            check_vma=self._is_checkable(plan),
        )(lhs, rhs)
        # An unchecked shard_map forgets over what its operands vary outside.
        return vary((*results, *lhs, *rhs), ())[: len(results)]

    def _is_checkable(self, plan: Plan) -> bool:
        """Whether jax can see that the result is equal along the axes which its layout leaves out.

        It cannot where the reason is an all-gather.
        """
        lhs, rhs, out = ({axis for axes in layout for axis in axes} for layout in self.layouts)
        slices = [s for change in (plan.lhs, plan.rhs) for s in change.early + change.late]
        sliced = {axis for _, axes in slices for axis in axes}
        return lhs | rhs | sliced <= out | set(plan.reduced)

    def _local(self, plan: Plan, lhs: list[jax.Array], rhs: list[jax.Array]) -> list[jax.Array]:
        """The results on local shards."""
        options = self.options
        lhs = [self._changed(x, plan.lhs) for x in lhs]
        rhs = [self._changed(x, plan.rhs) for x in rhs]
        fused = plan.fused
        wire = options.wire_dtype or getattr(options.schedule, "wire_dtype", None)
        if wire is None and (fused.gather is None or fused.scatter is not None):
            options = dataclasses.replace(options, wire_dtype=self.sums)
        if self.form == "sum":
            results = [schedule_and_run.run_sum(self.spec.formula, lhs, rhs, fused, options)]
        else:
            results = schedule_and_run.run(self.spec.formula, lhs[0], rhs, fused, options)
        return [self._finished(plan, y) for y in results]

    def _finished(self, plan: Plan, y: jax.Array) -> jax.Array:
        """A result after the collectives that follow the einsum and do not overlap it."""
        for dim, axes in plan.scatters:
            y = collectives.reduce_scatter(
                y, axes, scatter_dimension=dim, **self._collective_options()
            )
        if plan.reduce:
            y = collectives.all_reduce(y, plan.reduce, **self._collective_options())
        return self._changed(y, plan.out)

    def _changed(self, x: jax.Array, change: Change) -> jax.Array:
        for axes, apart, join in change.swaps:
            x = collectives.all_to_all(x, axes, apart, join, **self._collective_options())
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
        """The schedule and chip of a collective that overlaps with no einsum. Its result is waited for
        at once, so that "auto" leaves it to lax."""
        schedule = as_schedule(self.options.schedule)
        if schedule is not None and schedule.direction == "async":
            schedule = Schedule("chunked", "async")
        elif schedule is not None and schedule.kind != "blocking":
            schedule = Schedule("ring", schedule.direction, rolled=schedule.rolled)
        return {"schedule": schedule or "blocking", "chip": self.options.chip}


def _own_block(x: jax.Array, dim: int, axes: tuple[str, ...]) -> jax.Array:
    """This device's block of a dimension, of which it has more."""
    block = x.shape[dim] // lax.axis_size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * block, block, axis=dim)
