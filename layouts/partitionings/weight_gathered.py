"""The weight-gathered layouts: section 3.2.3 of "Efficiently Scaling Transformer Inference" (arXiv
2211.05102)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import AXES, WEIGHT_AXES, Axes, ScheduleLike
from .feedforward_layout import FeedForwardLayout, Outgoing, boundary_axes, total, whole_rows


@dataclasses.dataclass(frozen=True)
class WeightGathered(FeedForwardLayout):
    """Weights are all-gathered over `axes` just before use, activations stay (section 3.2.3).

    The batch is sharded over `axes`, E over the other axes; what is left of the weights' sharding
    is the 1D weight-stationary layout.

    Attributes:
      axes: ("x",), ("x", "y") or ("x", "y", "z").
    """

    axes: Axes = AXES

    def __post_init__(self) -> None:
        given: Any = (self.axes,) if isinstance(self.axes, str) else self.axes
        given = tuple(given) if isinstance(given, Sequence) else given
        if given not in (("x",), ("x", "y"), AXES):
            raise ValueError(
                f"WeightGathered(axes={self.axes!r}): weights are stored E_x F_yz and gathered over "
                'x first: choose ("x",), ("x", "y") or ("x", "y", "z")'
            )
        object.__setattr__(self, "axes", given)

    @property
    def batch_axes(self) -> Axes:
        """The axes that weights are gathered over."""
        return self.axes

    @property
    def inner_batch_axes(self) -> Axes:
        """The same."""
        return self.axes

    def features(self, sharded: Axes) -> Axes:
        """Columns stay sharded over what is not gathered."""
        return tuple(axis for axis in sharded if axis not in self.axes)

    def project_in(
        self,
        c: jax.Array,
        weights: Sequence[Any],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`; there is no scatter."""
        del overlap_seconds
        schedule = ax.weights_schedule(schedule)
        e = ax.values(weights[0]).shape[0] * ax.size(("x",))
        c = whole_rows(c, self, e, schedule)
        results = []
        for w, axes in zip(weights, sharded, strict=True):
            columns = ax.live([axis for axis in axes if axis in self.axes])
            results.append(_gathered("me,ef->mf", c, w, columns, schedule))
        return results

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        parts, schedule = [], ax.weights_schedule(schedule)
        for term in terms:
            gathered = () if term.columns_whole else WEIGHT_AXES
            columns = ax.live([axis for axis in gathered if axis in self.axes])
            parts.append(_gathered("mf,fe->me", term.h, term.w, columns, schedule))
        return ax.reduce_scatter_alone(total(parts), boundary_axes(self), 1, schedule)


def _gathered(spec: str, x: jax.Array, w: Any, columns: Axes, schedule: ScheduleLike) -> jax.Array:
    """x times w, gathered over x along E, and over the axes that cut its columns F."""
    if columns:
        # The larger gather, of columns, is the one to hide; without one, that of E.
        w = ax.all_gather(w, ("x",), spec.split(",")[1].index("e"), schedule)
    label, axes = ("f", columns) if columns else ("e", "x")
    return ax.all_gather_einsum(spec, x, w, axes, label, schedule)
