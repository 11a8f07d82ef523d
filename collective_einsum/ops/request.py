"""The options and collectives of an einsum as a caller gives them, before they are checked."""

from __future__ import annotations

import dataclasses

from jax import lax
from jax.typing import DTypeLike

from ..chips.chip import Chip
from ..text.messages import as_dtype, as_seconds
from .schedule import Schedule

AxisName = str | tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The options of the public functions, beyond operands and collectives; see `all_gather_einsum`."""

    schedule: str | Schedule = "auto"
    precision: lax.PrecisionLike = None
    preferred_element_type: DTypeLike | None = None
    accumulator_dtype: DTypeLike | None = None
    wire_dtype: DTypeLike | None = None
    overlap_seconds: float = 0.0
    chip: Chip | str | None = None

    def __post_init__(self) -> None:
        for name in ("preferred_element_type", "accumulator_dtype", "wire_dtype"):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, as_dtype(name, given))
        as_seconds("overlap_seconds", self.overlap_seconds)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestedCollectives:
    """The collectives before and after an einsum, as a caller names them.

    Attributes:
      gather: the label and the mesh axes of an all-gather of the operand that has the label.
      scatter: those of a reduce-scatter of the result.
      reduce: the mesh axes of an all-reduce of the result.
    """

    gather: tuple[str, AxisName] | None = None
    scatter: tuple[str, AxisName] | None = None
    reduce: AxisName | None = None

    @property
    def name(self) -> str:
        """The results' name for checkpoint policies: the public function of these collectives."""
        words = [
            "all_gather" if self.gather else "",
            "einsum",
            "reduce_scatter" if self.scatter else "",
            "all_reduce" if self.reduce else "",
        ]
        return "ce." + "_".join(filter(None, words))
