"""The weight-stationary layouts, 2D and 1D: sections 3.2.1 and 3.2.2 of "Efficiently Scaling
Transformer Inference" (arXiv 2211.05102)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from ..arguments import as_flag
from ..mesh import axis_collectives as ax
from ..mesh.axis_collectives import WEIGHT_AXES, Axes, ScheduleLike
from .feedforward_layout import FeedForwardLayout, Outgoing, total

# The einsum of `project_out`.
_OUT = "mf,fe->me"


@dataclasses.dataclass(frozen=True)
class WeightStationary2D(FeedForwardLayout):
    """Weights stay where they are, E over x and F over yz (section 3.2.2).

    x is BLE_xyz; all-gather over yz; matmul; reduce-scatter over x to BLF_yzx; the nonlinearity;
    all-gather over x; matmul; reduce-scatter over yz.

    Attributes:
      by_batch: what these collectives cut is the batch instead, B_yz LE_x between the layers and
        B_x LF_yz inside: the same bytes, of whole rows, which a TPU moves without copies.
      all_reduce: only with `by_batch`: the sums over yz are all-reduced, BLE_x between the layers. The
        same bytes as a reduce-scatter and the next layer's all-gather, in one collective and without
        the copies around two; but the norms and sums between the layers are of all rows, on every
        chip of yz. For steps of few rows.
      by_position: what they cut is each sequence's positions instead, BL_yz E_x between the layers
        and BL_x F_yz inside, also rows, for prompts of few sequences. Attention is by heads, of the
        chip's own queries; keys and values are projected before rows are gathered, if all chips of
        yz share them.
    """

    by_batch: bool = False
    all_reduce: bool = False
    by_position: bool = False

    def __post_init__(self) -> None:
        for field in ("by_batch", "all_reduce", "by_position"):
            flag = as_flag(f"WeightStationary2D: {field}", getattr(self, field))
            object.__setattr__(self, field, flag)
        if self.all_reduce and not self.by_batch:
            raise ValueError(
                "WeightStationary2D(all_reduce=True): rows that are replicated between layers go "
                "with rows cut inside of them; add by_batch=True"
            )
        if self.by_batch and self.by_position:
            raise ValueError(
                "WeightStationary2D(by_batch=True, by_position=True): rows are cut one way; choose "
                "by_batch for many sequences, by_position for few long ones"
            )

    @property
    def batch_axes(self) -> Axes:
        """None, or y and z if `by_batch` and not `all_reduce`."""
        return WEIGHT_AXES if self.by_batch and not self.all_reduce else ()

    @property
    def repeated_axes(self) -> Axes:
        """None, or y and z if `all_reduce`."""
        return WEIGHT_AXES if self.all_reduce else ()

    @property
    def inner_batch_axes(self) -> Axes:
        """None, or x if `by_batch`."""
        return ("x",) if self.by_batch else ()

    @property
    def position_axes(self) -> Axes:
        """None, or y and z if `by_position`."""
        return WEIGHT_AXES if self.by_position else ()

    @property
    def inner_position_axes(self) -> Axes:
        """None, or x if `by_position`."""
        return ("x",) if self.by_position else ()

    @property
    def cuts_rows(self) -> bool:
        """If `by_batch` or `by_position`."""
        return self.by_batch or self.by_position

    def features(self, sharded: Axes) -> Axes:
        """Unless rows are cut, columns are scattered over x after the sum over E_x."""
        return sharded if self.cuts_rows else (*sharded, "x")

    def project_in(
        self,
        c: jax.Array,
        weights: Sequence[Any],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`."""
        del sharded
        if self.all_reduce:
            return ax.einsum_reduce_scatter(
                "me,ef->mf", c, list(weights), "x", "m", schedule, overlap_seconds
            )
        ends = ("m", "m") if self.cuts_rows else ("e", "f")
        return _gather_and_scatter(c, weights, *ends, schedule, overlap_seconds)

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        gathers = ["m" if self.cuts_rows or term.by_rows else "f" for term in terms]
        if self.all_reduce:
            return ax.all_reduce(_stationary_sum(terms, gathers, schedule), WEIGHT_AXES, schedule)
        return _stationary_out(terms, gathers, "m" if self.cuts_rows else "e", schedule)


@dataclasses.dataclass(frozen=True)
class WeightStationary1D(FeedForwardLayout):
    """Weights stay where they are, F over as many chips as yz has (section 3.2.1).

    On a mesh whose x is 1 this is the paper's: all-gather of BLE; both matmuls; reduce-scatter.
    Weights are stored E_x F_yz, so where x is longer E stays sharded over it, and the sums over E_x
    are all-reduced before the nonlinearity, which every chip along x then does for itself.
    """

    def features(self, sharded: Axes) -> Axes:
        """Columns stay as they are stored."""
        return sharded

    def project_in(
        self,
        c: jax.Array,
        weights: Sequence[Any],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`; there is no scatter."""
        del sharded, overlap_seconds
        partial = ax.all_gather_einsum("me,ef->mf", c, list(weights), WEIGHT_AXES, "e", schedule)
        return [ax.all_reduce(each, ("x",), schedule) for each in partial]

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        gathers = ["m" if term.by_rows else None for term in terms]
        return _stationary_out(terms, gathers, "e", schedule)


def project_rows(c: jax.Array, weights: Sequence[Any], schedule: ScheduleLike) -> list[jax.Array]:
    """`project_in` of a weight-stationary layout, with rows cut over x instead of columns.

    For what goes on to be sharded by batch anyway. Returns [rows over x, columns as stored] for
    each weight.
    """
    return _gather_and_scatter(c, weights, "e", "m", schedule)


def _gather_and_scatter(
    c: jax.Array,
    weights: Sequence[Any],
    gather: str,
    scatter: str,
    schedule: ScheduleLike,
    overlap_seconds: float = 0.0,
) -> list[jax.Array]:
    """`project_in` of weight-stationary layouts; the labels are what yz cuts before, and x after."""
    ends = ((WEIGHT_AXES, gather), ("x", scatter))
    return ax.all_gather_einsum_reduce_scatter(
        "me,ef->mf", c, list(weights), *ends, schedule, overlap_seconds
    )


def _stationary_out(
    terms: Sequence[Outgoing],
    gathers: Sequence[str | None],
    scatter: str,
    schedule: ScheduleLike,
) -> jax.Array:
    """`project_out` of weight-stationary layouts; `gathers` are the labels that x cuts before, if
    any, and `scatter` is what yz cuts after."""
    if len(terms) == 1:
        (h, w, *_), (gather,) = terms[0], gathers
        if gather is None:
            return ax.einsum_reduce_scatter(_OUT, h, w, WEIGHT_AXES, scatter, schedule)
        ends = (("x", gather), (WEIGHT_AXES, scatter))
        return ax.all_gather_einsum_reduce_scatter(_OUT, h, w, *ends, schedule)
    y = _stationary_sum(terms, gathers, schedule)
    return ax.reduce_scatter_alone(y, WEIGHT_AXES, "me".index(scatter), schedule)


def _stationary_sum(
    terms: Sequence[Outgoing], gathers: Sequence[str | None], schedule: ScheduleLike
) -> jax.Array:
    """What `_stationary_out` sums over yz: [rows, E over x]."""
    parts: list[jax.Array] = []
    for term, gather in zip(terms, gathers, strict=True):
        h, w = term.h, term.w
        if gather is not None and term.in_turn and parts:
            h = ax.all_gather(h, ("x",), "mf".index(gather), schedule)
            # The sum so far first, which the next matmul adds to.
            h, before = lax.optimization_barrier((h, total(parts)))
            parts, gather = [before], None
        if gather is None:
            parts.append(ax.local_einsum(_OUT, h, w).astype(h.dtype))
            continue
        parts.append(ax.all_gather_einsum(_OUT, h, w, "x", gather, schedule))
    return total(parts)
