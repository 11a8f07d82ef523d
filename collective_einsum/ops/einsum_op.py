"""What is computed between the public functions and the ring: one einsum, its collectives, a schedule.

An operation has two forms. "each": one lhs, gathered or not, times every rhs, one result for each.
"sum": the products of lhs and rhs pairs, added up. Each form is the transpose of the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from ..autodiff.primitive import Dot, apply, checks_vma
from ..execution.product import dimension_numbers, fresh_label, product
from ..execution.run_einsum import execute
from .collective_op import Collective
from .schedule import Schedule


@dataclasses.dataclass(frozen=True)
class End:
    """A collective at one end: the label it shards and the axes it goes over."""

    label: str
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Operation:
    """One einsum and the collectives at its ends, but for the operands; hashable.

    `gather` is of the lhs. `reduce` are the axes of an all-reduce of the result, `closed` those of
    the ends whose last device is a neighbour of its first.
    """

    form: Literal["each", "sum"]
    lhs: str
    rhs: str
    out: str
    gather: End | None
    scatter: End | None
    reduce: tuple[str, ...]
    schedule: Schedule
    precision: Any
    accumulator: Any
    dtype: Any
    sum_wire: Any
    closed: tuple[str, ...] = ()

    @property
    def ends(self) -> tuple[End, ...]:
        """The gather and the scatter, as far as there are such."""
        return tuple(end for end in (self.gather, self.scatter) if end is not None)

    @property
    def taken(self) -> set[str]:
        """The labels that they move."""
        return {end.label for end in self.ends}

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes of the collectives."""
        return sum((end.axes for end in self.ends), ()) + self.reduce

    @property
    def summed(self) -> tuple[str, ...]:
        """The axes over which results are equal afterwards."""
        return self.reduce

    def product(self, lhs: Any, rhs: Any) -> Any:
        """The einsum of two local pieces, in the accumulator's dtype."""
        labels = (self.lhs, self.rhs, self.out)
        return product(labels, lhs, rhs, accumulator=self.accumulator, precision=self.precision)

    def wire(self, total: Any) -> Any:
        """Partial sums as they travel."""
        return total.astype(self.sum_wire)

    def moving(self, x: Any) -> Any:
        """The gathered operand as it travels."""
        floating = jnp.issubdtype(x.dtype, jnp.inexact)
        return x.astype(self.schedule.wire_dtype) if self.schedule.wire_dtype and floating else x

    def run(self, *operands: Any) -> list[Any]:
        """The results, on local shards: of "each", one for every rhs; of "sum", one."""
        count = 1 if self.form == "each" else len(operands) // 2
        lhs, rhs = list(operands[:count]), list(operands[count:])
        with jax.named_scope(self._scope()):
            results = execute(self, lhs, rhs)
            return [result.astype(self.dtype) for result in results]

    def tangents(self, operands: Sequence[Any], tangents: Sequence[Any]) -> list[Any]:
        """One term for each operand that moves; see `primitive.Op`."""
        lefts = 1 if self.form == "each" else len(operands) // 2
        lhs, rhs = operands[:lefts], operands[lefts:]
        dlhs, drhs = tangents[:lefts], tangents[lefts:]
        totals: list[Any] = [None] * (len(rhs) if self.form == "each" else 1)

        def add(where: Sequence[int], values: Sequence[Any]) -> None:
            for i, value in zip(where, values, strict=True):
                totals[i] = value if totals[i] is None else totals[i] + value

        for a, b in ((dlhs, rhs), (lhs, drhs)):
            if self.form == "each":
                moved = [i for i, each in enumerate(b) if each is not None]
                if a[0] is not None and moved:
                    add(moved, apply(self, a[0], *(b[i] for i in moved)))
            else:
                moved = [i for i in range(len(a)) if a[i] is not None and b[i] is not None]
                if moved:
                    add([0], apply(self, *(a[i] for i in moved), *(b[i] for i in moved)))
        return totals

    def transpose(self, cotangents: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        """The mirrored operation; see `primitive.Op`."""
        lefts = 1 if self.form == "each" else len(operands) // 2
        lhs, rhs = operands[:lefts], operands[lefts:]
        cts = [ct.astype(self.dtype) for ct in cotangents]
        if self.reduce and not checks_vma(self.reduce):
            # As lax.psum, which is its own transpose where replication is not tracked.
            cts = [lax.psum(ct, self.reduce) for ct in cts]
        plain = dataclasses.replace(self, reduce=())
        if any(each is None for each in lhs):
            return plain._to_lhs(cts, rhs) + [None] * len(rhs)
        return [None] * lefts + plain._to_rhs(cts, lhs, [each is None for each in rhs])

    def _to_lhs(self, cts: Sequence[Any], rhs: Sequence[Any]) -> list[Any]:
        mirrored = dataclasses.replace(
            self, lhs=self.out, rhs=self.rhs, out=self.lhs, gather=self.scatter, scatter=self.gather
        )
        if self.form == "sum":
            return apply(dataclasses.replace(mirrored, form="each"), cts[0], *rhs)
        if self.scatter is None or len(cts) == 1:
            form = "sum" if self.scatter is None else "each"
            return apply(dataclasses.replace(mirrored, form=form), *cts, *rhs)
        # Both ends and several results: each is gathered before its product.
        wholes = [self._whole(ct, self.out, self.scatter) for ct in cts]
        return apply(dataclasses.replace(mirrored, form="sum", gather=None), *wholes, *rhs)

    def _to_rhs(self, cts: Sequence[Any], lhs: Sequence[Any], wanted: Sequence[bool]) -> list[Any]:
        if self.form == "sum":
            mirrored = dataclasses.replace(
                self,
                form="each",
                lhs=self.out,
                rhs=self.lhs,
                out=self.rhs,
                gather=self.scatter,
                scatter=None,
            )
            found = apply(
                mirrored, cts[0], *(x for x, want in zip(lhs, wanted, strict=True) if want)
            )
        else:
            chosen = [ct for ct, want in zip(cts, wanted, strict=True) if want]
            if self.scatter is not None:
                chosen = [self._whole(ct, self.out, self.scatter) for ct in chosen]
            mirrored = dataclasses.replace(self, rhs=self.out, out=self.rhs, scatter=None)
            found = apply(mirrored, lhs[0], *chosen)
        rest = iter(found)
        return [next(rest) if want else None for want in wanted]

    def _whole(self, x: Any, labels: str, end: End) -> Any:
        return apply(Collective("all_gather", labels.index(end.label), end.axes, self.schedule), x)[
            0
        ]

    def batched(
        self, dims: Sequence[int | None], operands: Sequence[Any], over: tuple[str, ...]
    ) -> tuple[Operation, list[Any]]:
        """A new label, in front; see `primitive.Op`. Axes of `over` are not manual."""
        lefts = 1 if self.form == "each" else len(operands) // 2
        label = fresh_label(self.lhs + self.rhs)
        size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
        sides = (range(lefts), range(lefts, len(operands)))
        moved = list(operands)
        mapped = [any(dims[i] is not None for i in side) for side in sides]
        for side, is_mapped in zip(sides, mapped, strict=True):
            for i in side:
                if is_mapped:
                    d = dims[i]
                    moved[i] = (
                        jnp.broadcast_to(operands[i], (size, *operands[i].shape))
                        if d is None
                        else jnp.moveaxis(operands[i], d, 0)
                    )
        left, right = (label if is_mapped else "" for is_mapped in mapped)
        op = dataclasses.replace(
            self, lhs=left + self.lhs, rhs=right + self.rhs, out=label + self.out
        )
        return op, moved

    def dots(self, operands: Sequence[Any]) -> list[Dot]:
        """One for each rhs, or pair; see `primitive.Op`."""
        count = 1 if self.form == "each" else len(operands) // 2
        lefts = [operands[0]] * len(operands[1:]) if count == 1 else operands[:count]
        numbers = dimension_numbers(self.lhs, self.rhs, self.out)
        return [(a, b, numbers) for a, b in zip(lefts, operands[count:], strict=True)]

    def _scope(self) -> str:
        words = ["einsum"]
        if self.gather:
            words.insert(0, "all_gather")
        if self.scatter:
            words.append("reduce_scatter")
        if self.reduce:
            words.append("all_reduce")
        return f"{'_'.join(words)}[{self.schedule}]"
