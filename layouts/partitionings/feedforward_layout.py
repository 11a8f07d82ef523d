"""The methods of every feedforward layout of "Efficiently Scaling Transformer Inference" (arXiv
2211.05102), sections 3.2.1 to 3.2.3.

A layout decides how activations and weights meet. All layouts take weights stored E_x F_yz (and
F_yz E_x), so that one copy serves prefill in one layout and decode in another. A layout is two steps:
`project_in`, from activations between layers [rows, E] to features [rows, F], and `project_out` back;
the projections of attention take the same two. Both work on local shards inside a shard_map over x, y
and z.

"Features" are the columns of a projection: F of the feedforward, heads times D of attention. "Rows" are
tokens: all positions of all sequences that a chip has, as the rows of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
from jax.sharding import PartitionSpec as P

from ..mesh import axis_collectives as ax
from ..mesh.axes import BATCH
from ..mesh.axis_collectives import AXES, Activations, Axes, ScheduleLike, SomeWeight, Weight
from ..models.functions import wide


class Outgoing(NamedTuple):
    """One term of the sum that `project_out` makes: features and the output matrix they multiply.

    Attributes:
      h: [rows, F over features(("y", "z"))]; or, if `token_sharded`, [rows over x, F over yz].
      w: [F over yz, E over x].
      token_sharded: whether h is sharded over x by rows.
      features_gathered: whether w is gathered already, [F of h, E over x].
      gather_overlapped: whether the gather of h overlaps the matmuls of the terms before, as an
        asynchronous collective of the compiler.
      overlap_seconds: seconds of independent compute that the gather of h can overlap.
    """

    h: Activations
    w: Weight
    token_sharded: bool = False
    features_gathered: bool = False
    gather_overlapped: bool = False
    overlap_seconds: float = 0.0


class FeedForwardLayout(Protocol):
    """The methods of every feedforward layout, over the mesh axes x, y and z."""

    @property
    def batch_axes(self) -> Axes:
        """The axes that shard the batch between layers, major first."""
        return ()

    @property
    def inner_batch_axes(self) -> Axes:
        """The axes that shard the batch after `project_in` and before `project_out`."""
        return ()

    @property
    def position_axes(self) -> Axes:
        """The axes that shard the positions of every sequence between layers, major first."""
        return ()

    @property
    def inner_position_axes(self) -> Axes:
        """The axes that shard positions after `project_in` and before `project_out`."""
        return ()

    @property
    def repeated_axes(self) -> Axes:
        """The axes over which activations are replicated between layers."""
        return ()

    @property
    def summed_axes(self) -> Axes:
        """The axes over which `project_in` sums the products of shards of E; it gathers others."""
        return ("x",)

    @property
    def moves_tokens(self) -> bool:
        """Whether collectives of activations gather and scatter tokens, rather than features."""
        return False

    def features(self, sharded: Axes) -> Axes:
        """The axes, major first, that shard the features that `project_in` makes of a weight whose
        columns are stored over `sharded`."""
        ...

    def project_in(
        self,
        c: Activations,
        weights: Sequence[Weight],
        sharded: Sequence[Axes],
        schedule: ScheduleLike,
        overlap_seconds: float = 0.0,
    ) -> list[jax.Array]:
        """Multiplies activations with weights.

        Args:
          c: [rows, E over `boundary_axes`].
          weights: each [E over x, F over its entry of `sharded`].
          sharded: for each weight, the axes over which its columns are stored.
          schedule: of the collectives.
          overlap_seconds: seconds of independent compute that can overlap the last scatter.

        Returns:
          [rows, F over `features(sharded)`] for each weight.
        """
        ...

    def project_out(self, terms: Sequence[Outgoing], schedule: ScheduleLike) -> jax.Array:
        """The sum of h times w over all terms, with one reduce-scatter: [rows, E over
        `boundary_axes`]."""
        ...


def token_axes(layout: FeedForwardLayout) -> Axes:
    """The axes that shard tokens between layers, major first."""
    return (*layout.batch_axes, *layout.position_axes)


def inner_token_axes(layout: FeedForwardLayout) -> Axes:
    """The axes that shard tokens after `project_in` and before `project_out`."""
    return (*layout.inner_batch_axes, *layout.inner_position_axes)


def boundary_axes(layout: FeedForwardLayout) -> Axes:
    """The axes that shard E between layers: those that shard no rows and replicate none."""
    taken = (*token_axes(layout), *layout.repeated_axes)
    return tuple(axis for axis in AXES if axis not in taken)


def boundary_spec(layout: FeedForwardLayout) -> P:
    """The partition spec of activations [batch, length, E] between layers, over the axes of the
    layout and those of the batch."""
    batch = (BATCH, *layout.batch_axes)
    return P(batch, layout.position_axes, boundary_axes(layout))


def feature_bias(
    layout: FeedForwardLayout, bias: jax.Array, sharded: Axes, schedule: ScheduleLike
) -> jax.Array:
    """A bias [F over `sharded`], stored like the columns of its matrix, as [F over
    `layout.features(sharded)`], like the features that `project_in` makes."""
    have = layout.features(sharded)
    bias = ax.all_gather(bias, [axis for axis in sharded if axis not in have], 0, schedule)
    return ax.own_block(bias, [axis for axis in have if axis not in sharded], 0)


def gather_features(
    c: SomeWeight, layout: FeedForwardLayout, size: int, schedule: ScheduleLike
) -> SomeWeight:
    """c [rows, E over `boundary_axes`] as [rows, E]; c itself if it has all `size` of E already."""
    if c.shape[1] == size:
        return c
    return ax.all_gather(c, boundary_axes(layout), 1, schedule)


def boundary_shard(layout: FeedForwardLayout, vector: jax.Array, size: int) -> jax.Array:
    """A replicated vector [..., E] as [..., E over `boundary_axes`], as activations are sharded between
    layers; the vector itself if its last dimension is not `size`, so that it is sharded already."""
    if vector.shape[-1] != size:
        return vector
    return ax.own_block(vector, boundary_axes(layout), vector.ndim - 1)


def boundary_slice(layout: FeedForwardLayout, matrix: jax.Array, size: int) -> jax.Array:
    """The same of a replicated matrix [..., E, n], as [..., E over `boundary_axes`, n]."""
    if matrix.shape[-2] != size:
        return matrix
    return ax.own_block(matrix, boundary_axes(layout), matrix.ndim - 2)


def total(terms: Sequence[jax.Array]) -> jax.Array:
    """The sum of arrays of one dtype, added in `wide(dtype)` and rounded once."""
    dtype = terms[0].dtype
    total = sum((term.astype(wide(dtype)) for term in terms[1:]), terms[0].astype(wide(dtype)))
    return total.astype(dtype)
