"""A collective of one array, as frozen data; `execution.run_collective` runs it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from .schedule import Schedule

CollectiveKind = Literal["all_gather", "reduce_scatter", "all_to_all", "all_reduce"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One collective of a local shard; hashable.

    Attributes:
      kind: as the functions of `jax.lax` are called.
      dim: the dimension that is gathered, scattered or split.
      axes: the mesh axes.
      schedule: lax's own collective, or a ring.
      concat: the dimension along which an all_to_all joins what arrives.
    """

    kind: CollectiveKind
    dim: int
    axes: tuple[str, ...]
    schedule: Schedule
    concat: int = 0

    @property
    def summed(self) -> tuple[str, ...]:
        """The axes over which results are equal afterwards."""
        return self.axes if self.kind == "all_reduce" else ()
