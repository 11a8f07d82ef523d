"""The weight-gathered layouts, section 3.2.3 of "Efficiently Scaling Transformer Inference" (arXiv
2211.05102)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import AXES, WEIGHT_AXES, Activations, Axes, ScheduleLike, Weight
from .feedforward_layout import FeedForwardLayout, Outgoing, boundary_axes, gather_features, total


@dataclasses.dataclass(frozen=True)
class WeightGathered(FeedForwardLayout):
    """All-gathers weights over `axes` just before use; activations stay where they are (section 3.2.3).

    The batch is sharded over `axes`, and E over the other axes. Over those, weights and activations
    meet as in the 1D weight-stationary layout.

    Attributes:
      axes: ("x",), ("x", "y") or ("x", "y", "z").

    Raises:
      ValueError: other axes.
    """

    axes: Axes = AXES

    def __post_init__(self) -> None:
        axes: object = (self.axes,) if isinstance(self.axes, str) else self.axes
        axes = tuple(axes) if isinstance(axes, Sequence) else axes
        if axes not in (("x",), ("x", "y"), AXES):
            raise ValueError(
                f"WeightGathered(axes={self.axes!r}): weights are stored E_x F_yz and gathered over "
                'x first: choose ("x",), ("x", "y") or ("x", "y", "z")'
            )
        object.__setattr__(self, "axes", axes)

    @property
    def batch_axes(self) -> Axes:
        """The axes over which weights are gathered."""
        return self.axes

    @property
    def inner_batch_axes(self) -> Axes:
        """The axes over which weights are gathered."""
        return self.axes

    @property
    def summed_axes(self) -> Axes:
        """None: all of E is gathered."""
        return ()

    def features(self, sharded: Axes) -> Axes:
        """Features stay sharded over the axes over which weights are not gathered."""
        return tuple(axis for axis in sharded if axis not in self.axes)

    def project_in(
        self,
        c: Activations,
        weights: Sequence[Weight],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`; there is no scatter."""
        del overlap_seconds
        e = ax.values(weights[0]).shape[0] * ax.size(("x",))
        c = gather_features(c, self, e, schedule)
        results = []
        for w, axes in zip(weights, sharded, strict=True):
            columns = ax.live([axis for axis in axes if axis in self.axes])
            results.append(_gathered("me,ef->mf", c, w, columns, schedule))
        return results

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        products = []
        for term in terms:
            gathered = () if term.features_gathered else WEIGHT_AXES
            columns = ax.live([axis for axis in gathered if axis in self.axes])
            products.append(_gathered("mf,fe->me", term.h, term.w, columns, schedule))
        return ax.reduce_scatter_alone(total(products), boundary_axes(self), 1, schedule)


def _gathered(
    spec: str, x: Activations, w: Weight, columns: Axes, schedule: ScheduleLike
) -> jax.Array:
    """x times w, which is all-gathered along E over x, and along F over `columns`."""
    if columns:
        # The einsum overlaps the larger gather: that of F, or without one that of E.
        w = ax.all_gather(w, ("x",), spec.split(",")[1].index("e"), schedule)
    label, axes = ("f", columns) if columns else ("e", "x")
    return ax.all_gather_einsum(spec, x, w, axes, label, schedule)
