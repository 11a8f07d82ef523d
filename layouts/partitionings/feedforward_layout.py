"""The feedforward layouts of "Efficiently Scaling Transformer Inference", sections 3.2.1 to 3.2.3.

A layout is how activations come to weights: all of them take weights stored E_x F_yz (and F_yz E_x),
so one copy serves prefill in one layout and decode in another. What a layout does is two steps,
`project_in` from the boundary of a layer to features, and `project_out` back; attention's
projections take the same two. Everything here works on local shards inside a shard_map over x, y
and z, but for the partition specs.

"Features" are the columns of a projection: F of the feedforward, heads times D of attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import PartitionSpec as P

from ..mesh import axis_collectives as ax
from ..mesh.axes import BATCH
from ..mesh.axis_collectives import AXES, Axes, ScheduleLike
from ..models.functions import wide


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
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """c [rows, E over the rest] times each weight [E_x, columns over its `sharded`].

        `overlap_seconds` are seconds of work that the last scatter can run beside.

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


def boundary_spec(layout: FeedForwardLayout) -> P:
    """The partition spec of activations [batch, length, E] between layers, over the axes of the
    layout and those of the batch."""
    batch = (BATCH, *layout.batch_axes)
    return P(batch, layout.position_axes, boundary_axes(layout))


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


def total(parts: Sequence[jax.Array]) -> jax.Array:
    """The sum of some arrays, rounded once."""
    dtype = parts[0].dtype
    total = sum((part.astype(wide(dtype)) for part in parts[1:]), parts[0].astype(wide(dtype)))
    return total.astype(dtype)
