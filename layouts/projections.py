"""The feedforward layouts of "Efficiently Scaling Transformer Inference", sections 3.2.1 to 3.2.3.

A layout is how activations come to weights: all of them take weights stored E_x F_yz (and F_yz E_x),
so one copy serves prefill in one layout and decode in another. What a layout does is two steps,
`project_in` from the boundary of a layer to features, and `project_out` back; attention's
projections take the same two. Everything here works on local shards inside a shard_map over x, y
and z, but for the partition specs.

"Features" are the columns of a projection: F of the feedforward, heads times D of attention.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax import lax
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from . import axes as ax
from .axes import AXES, WEIGHT_AXES, Axes, ScheduleLike
from .functions import wide

# The einsum of `project_out`.
_OUT = "mf,fe->me"


class Outgoing(NamedTuple):
    """Columns on their way through an output matrix, back to the boundary of a layer.

    Attributes:
      h: [rows, columns over features(("y", "z"))]; or, if `by_rows`, [rows over x, columns over
        yz].
      w: [columns over yz, E over x].
      by_rows: whether x cuts rows.
      columns_whole: whether w [columns, E over x] has all the columns of h already.
      in_turn: whether h is gathered beside the matmuls of the terms before, by a collective that the
        compiler runs beside them.
    """

    h: jax.Array
    w: Any
    by_rows: bool = False
    columns_whole: bool = False
    in_turn: bool = False


class FeedForwardLayout(Protocol):
    """What every feedforward layout can do; x, y, z are mesh axes and W its `batch_axes`.

    Rows are the positions of all the sequences that a chip has at that point.
    """

    @property
    def batch_axes(self) -> Axes:
        """The axes over which activations are sharded by batch between layers, major first."""
        return ()

    @property
    def inner_batch_axes(self) -> Axes:
        """The same after `project_in`, and before `project_out`."""
        return ()

    @property
    def position_axes(self) -> Axes:
        """The axes over which activations are sharded by position between layers, major first."""
        return ()

    @property
    def inner_position_axes(self) -> Axes:
        """The same after `project_in`, and before `project_out`."""
        return ()

    @property
    def repeated_axes(self) -> Axes:
        """The axes along which chips hold the same activations between layers."""
        return ()

    @property
    def cuts_rows(self) -> bool:
        """Whether the collectives of activations cut rows, rather than columns."""
        return False

    def features(self, sharded: Axes) -> Axes:
        """The axes, major first, of what `project_in` makes with columns stored over `sharded`."""
        ...

    def project_in(
        self,
        c: jax.Array,
        weights: Sequence[Any],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        beside: float = 0.0,
    ) -> list[jax.Array]:
        """c [rows, E over the rest] times each weight [E_x, columns over its `sharded`].

        `beside` are seconds of work that the last scatter can run beside.

        Returns [rows, columns over `features(sharded)`] for each.
        """
        ...

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """The sum of h times w over all terms, with one reduce-scatter: [rows, E over the rest]."""
        ...


def boundary_axes(layout: FeedForwardLayout) -> Axes:
    """The axes that shard E between layers: those that neither shard rows nor repeat them."""
    taken = (*layout.batch_axes, *layout.position_axes, *layout.repeated_axes)
    return tuple(axis for axis in AXES if axis not in taken)


def activation_spec(layout: FeedForwardLayout) -> P:
    """The partition spec of activations [batch, length, E] between layers."""
    parts = (layout.batch_axes, layout.position_axes, boundary_axes(layout))
    return P(*(axes or None for axes in parts))


@dataclasses.dataclass(frozen=True)
class WeightStationary2D(FeedForwardLayout):
    """Weights stay where they are, E over x and F over yz (section 3.2.2).

    x is BLE_xyz; all-gather over yz; matmul; reduce-scatter over x to BLF_yzx; the nonlinearity;
    all-gather over x; matmul; reduce-scatter over yz.

    Attributes:
      by_batch: what these collectives cut is the batch instead, B_yz LE_x between the layers and
        B_x LF_yz inside: the same bytes, of whole rows, which a TPU moves without copies.
      whole: only with `by_batch`: the sums over yz are all-reduced, BLE_x between the layers. The
        same bytes as a reduce-scatter and the next layer's all-gather, in one collective and without
        the copies around two; but the norms and sums between the layers are of all rows, on every
        chip of yz. For steps of few rows.
      by_position: what they cut is each sequence's positions instead, BL_yz E_x between the layers
        and BL_x F_yz inside, also rows, for prompts of few sequences. Attention is by heads, of the
        chip's own queries; keys and values are projected before rows are gathered, if all chips of
        yz share them.
    """

    by_batch: bool = False
    whole: bool = False
    by_position: bool = False

    def __post_init__(self) -> None:
        if self.whole and not self.by_batch:
            raise ValueError(
                "WeightStationary2D(whole=True): whole rows between layers go with rows cut inside "
                "of them; add by_batch=True"
            )
        if self.by_batch and self.by_position:
            raise ValueError(
                "WeightStationary2D(by_batch=True, by_position=True): rows are cut one way; choose "
                "by_batch for many sequences, by_position for few long ones"
            )

    @property
    def batch_axes(self) -> Axes:
        """None, or y and z if `by_batch` and not `whole`."""
        return WEIGHT_AXES if self.by_batch and not self.whole else ()

    @property
    def repeated_axes(self) -> Axes:
        """None, or y and z if `whole`."""
        return WEIGHT_AXES if self.whole else ()

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
        beside: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`."""
        del sharded
        if self.whole:
            return ce.einsum_reduce_scatter(
                "me,ef->mf",
                c,
                list(weights),
                axis_name="x",
                scatter="m",
                schedule=schedule,
                beside=beside,
            )
        ends = ("m", "m") if self.cuts_rows else ("e", "f")
        return _gather_and_scatter(c, weights, *ends, schedule, beside)

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        gathers = ["m" if self.cuts_rows or term.by_rows else "f" for term in terms]
        if self.whole:
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
        beside: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`; there is no scatter."""
        del sharded, beside
        partial = ce.all_gather_einsum(
            "me,ef->mf", c, list(weights), axis_name=WEIGHT_AXES, gather="e", schedule=schedule
        )
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
    beside: float = 0.0,
) -> list[jax.Array]:
    """`project_in` of weight-stationary layouts; the labels are what yz cuts before, and x after."""
    return ce.all_gather_einsum_reduce_scatter(
        "me,ef->mf",
        c,
        list(weights),
        gather_axis_name=WEIGHT_AXES,
        gather=gather,
        scatter_axis_name="x",
        scatter=scatter,
        schedule=schedule,
        beside=beside,
    )


def _stationary_out(
    terms: Sequence[Outgoing],
    gathers: Sequence[str | None],
    scatter: str,
    schedule: ScheduleLike,
) -> jax.Array:
    """`project_out` of weight-stationary layouts; `gathers` are the labels that x cuts before, if
    any, and `scatter` is what yz cuts after."""
    ends = {"scatter": scatter, "schedule": schedule}
    if len(terms) == 1:
        (h, w, *_), (gather,) = terms[0], gathers
        if gather is None:
            return ce.einsum_reduce_scatter(_OUT, h, w, axis_name=WEIGHT_AXES, **ends)
        return ce.all_gather_einsum_reduce_scatter(
            _OUT,
            h,
            w,
            gather_axis_name="x",
            gather=gather,
            scatter_axis_name=WEIGHT_AXES,
            **ends,
        )
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
            h, before = lax.optimization_barrier((h, _sum(parts)))
            parts, gather = [before], None
        if gather is None:
            parts.append(ax.local_einsum(_OUT, h, w).astype(h.dtype))
            continue
        parts.append(
            ce.all_gather_einsum(_OUT, h, w, axis_name="x", gather=gather, schedule=schedule)
        )
    return _sum(parts)


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
        given = (self.axes,) if isinstance(self.axes, str) else tuple(self.axes)
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
        beside: float = 0.0,
    ) -> list[jax.Array]:
        """See `FeedForwardLayout`; there is no scatter."""
        del beside
        schedule = ax.weights_schedule(schedule)
        e = ax.values(weights[0]).shape[0] * ax.size(("x",))
        c = whole_rows(c, self, e, schedule)
        results = []
        for w, axes in zip(weights, sharded, strict=True):
            # The larger gather, of columns, is the one to hide; without one, that of E.
            columns = ax.live([axis for axis in axes if axis in self.axes])
            if columns:
                w = ax.all_gather(w, ("x",), 0, schedule)
            results.append(
                ce.all_gather_einsum(
                    "me,ef->mf",
                    c,
                    w,
                    axis_name=columns or "x",
                    gather="f" if columns else "e",
                    schedule=schedule,
                )
            )
        return results

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """See `FeedForwardLayout`."""
        parts, schedule = [], ax.weights_schedule(schedule)
        for term in terms:
            h, w = term.h, term.w
            gathered = () if term.columns_whole else WEIGHT_AXES
            columns = ax.live([axis for axis in gathered if axis in self.axes])
            if columns:
                w = ax.all_gather(w, ("x",), 1, schedule)
            parts.append(
                ce.all_gather_einsum(
                    "mf,fe->me",
                    h,
                    w,
                    axis_name=columns or "x",
                    gather="f" if columns else "e",
                    schedule=schedule,
                )
            )
        return ax.reduce_scatter_alone(_sum(parts), boundary_axes(self), 1, schedule)


def _sum(parts: Sequence[jax.Array]) -> jax.Array:
    """The sum of some arrays, rounded once."""
    dtype = parts[0].dtype
    total = sum((part.astype(wide(dtype)) for part in parts[1:]), parts[0].astype(wide(dtype)))
    return total.astype(dtype)


def feature_bias(
    layout: FeedForwardLayout, bias: jax.Array, sharded: Axes, schedule: ScheduleLike
) -> jax.Array:
    """A bias, stored like the columns of its matrix, as `project_in` leaves those columns."""
    have = layout.features(sharded)
    bias = ax.all_gather(bias, [axis for axis in sharded if axis not in have], 0, schedule)
    return ax.own_block(bias, [axis for axis in have if axis not in sharded], 0)


def whole_rows(
    c: jax.Array, layout: FeedForwardLayout, size: int, schedule: ScheduleLike
) -> jax.Array:
    """The whole of each row of c [rows, E over the rest]; c where it is that already."""
    if c.shape[1] == size:
        return c
    return ax.all_gather(c, boundary_axes(layout), 1, schedule)


def boundary_shard(layout: FeedForwardLayout, vector: jax.Array, size: int) -> jax.Array:
    """This device's part of a vector [..., size], as activations are sharded between layers.

    What is its part already stays as it is.
    """
    if vector.shape[-1] != size:
        return vector
    return ax.own_block(vector, boundary_axes(layout), vector.ndim - 1)
