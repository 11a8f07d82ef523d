"""One einsum with its collectives and its schedule, as frozen data without operands.

An operation has two forms. "shared_lhs": one lhs, gathered or not, times every rhs, one result for each.
"sum": the products of lhs and rhs pairs, added up. Each form is the transpose of the other.
`execution.run_einsum` runs it, `autodiff.einsum_rules` differentiates it, `cost` prices it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from jax import lax
from jax.typing import DTypeLike

from ..chips.chip import Chip
from .schedule import Schedule

Operand = TypeVar("Operand")
Form = Literal["shared_lhs", "sum"]


def split(
    form: Form, operands: Sequence[Operand], *, scaled: bool = False
) -> tuple[list[Operand], list[Operand], list[Operand]]:
    """Every lhs, every rhs, and the scale of each rhs, or none, of the operands in this order."""
    half = len(operands) // 2
    lhs = half if form == "sum" else 1
    scales = lhs + half if scaled else len(operands)
    return list(operands[:lhs]), list(operands[lhs:scales]), list(operands[scales:])


def products(
    form: Form, lhs: Sequence[Operand], rhs: Sequence[Operand]
) -> list[tuple[Operand, Operand]]:
    """The two operands of every product: one for each rhs, or pair."""
    lefts = [*lhs] * len(rhs) if form == "shared_lhs" else lhs
    return list(zip(lefts, rhs, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class EinsumCollective:
    """A collective before or after an einsum.

    Attributes:
      label: the label of the einsum that is sharded.
      axes: the mesh axes of the collective.
    """

    label: str
    axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operation:
    """One einsum and its collectives, without operands; hashable.

    Attributes:
      form: "shared_lhs" or "sum", see the module.
      lhs, rhs, out: the labels of the operands and of the result.
      gather: the all-gather of the lhs before the einsum.
      scatter: the reduce-scatter of the result after it.
      reduce: the axes of an all-reduce of the result.
      schedule: how the collectives overlap with the dots.
      precision: as `jnp.einsum` takes it.
      accumulator: the dtype of the dots' results.
      dtype: the dtype of the result.
      sum_wire: the dtype in which partial sums are sent.
      scaled: whether the result of each rhs is multiplied by a scale, an operand of its own, chunk by
        chunk; for "shared_lhs" without collectives after the einsum.
      in_rows: whether what is gathered is laid out in rows for dots of int8 weights, as
        `CompilerHabits.widens_in_rows` says of the chip.
      closed: the axes of the collectives whose last device is a neighbour of their first, as far as
        the schedule depends on it.
      chosen_for: the chip whose costs chose the schedule, and choose one for every einsum that is
        derived from this one; None where the schedule was asked for by name, and they run under it.
    """

    form: Form
    lhs: str
    rhs: str
    out: str
    gather: EinsumCollective | None
    scatter: EinsumCollective | None
    reduce: tuple[str, ...]
    schedule: Schedule
    precision: lax.PrecisionLike
    accumulator: DTypeLike
    dtype: np.dtype
    sum_wire: np.dtype
    scaled: bool = False
    in_rows: bool = False
    closed: tuple[str, ...] = ()
    chosen_for: Chip | None = dataclasses.field(default=None, repr=False)

    @property
    def labels(self) -> tuple[str, str, str]:
        """Those of lhs, rhs and the result."""
        return self.lhs, self.rhs, self.out

    @functools.cached_property
    def collectives(self) -> tuple[EinsumCollective, ...]:
        """The gather and the scatter, as far as there are such."""
        return tuple(
            collective for collective in (self.gather, self.scatter) if collective is not None
        )

    def ring(self, schedule: Schedule) -> EinsumCollective | None:
        """The collective whose ring a "ring" schedule goes round; None where there is neither a gather
        nor a scatter."""
        if self.gather is not None and (self.scatter is None or schedule.ring_of == "gather"):
            return self.gather
        return self.scatter

    @property
    def gathers_alone(self) -> bool:
        """Whether an all-gather is its only collective."""
        return self.gather is not None and self.scatter is None and not self.reduce

    @property
    def moved_labels(self) -> set[str]:
        """The labels that the gather and the scatter move."""
        return {collective.label for collective in self.collectives}

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes of the collectives."""
        return self._axes

    @functools.cached_property
    def _axes(self) -> tuple[str, ...]:
        return sum((collective.axes for collective in self.collectives), ()) + self.reduce

    @property
    def summed(self) -> tuple[str, ...]:
        """The axes over which results are equal afterwards."""
        return self.reduce

    def split(
        self, operands: Sequence[Operand]
    ) -> tuple[list[Operand], list[Operand], list[Operand]]:
        """Every lhs, every rhs, and the scale of each rhs, or none, of the operands in this order."""
        return split(self.form, operands, scaled=self.scaled)
