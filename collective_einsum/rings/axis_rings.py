"""The rings of a collective over mesh axes: round one axis, or through all devices of several."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..ops.schedule import Direction
from .hamiltonian_rings import Place, disjoint_rings
from .permutes import device_number, in_mesh_order
from .slicing import Index, ShardedDim, Span
from .streams import Stream, ring_directions


class AxisRing:
    """The ring of one mesh axis, where a dimension holds the shards of that axis and of others.

    Attributes:
      axis: the mesh axis, or the axes that a ring goes through.
      devices: of a ring through several axes, the devices in its order, by their number.
      n: how many devices the ring has.
      sizes: of the axes whose shards the dimension holds, the first one major.
      position: of the ring's axis among these.
    """

    axis: str | tuple[str, ...]
    devices: tuple[int, ...] = ()
    n: int
    sizes: tuple[int, ...]
    position: int

    def __init__(self, axes: tuple[str, ...], present: tuple[int, ...], ring: int) -> None:
        """The ring of `axes[ring]`; the dimension holds the shards of the axes numbered `present`."""
        self.axis = axes[ring]
        self.n = lax.axis_size(self.axis)
        self.sizes = tuple(lax.axis_size(axes[i]) for i in present)
        self.position = present.index(ring)

    @property
    def shards(self) -> int:
        """How many shards the dimension holds."""
        return self.sharded(0).shards

    def index(self, offset: Index) -> Index:
        """The index along the axis of the device `offset` further along the ring."""
        return (lax.axis_index(self.axis) + offset) % self.n

    def sharded(self, dim: int) -> ShardedDim:
        """Dimension `dim` of an array, with the shards that this ring is about."""
        return ShardedDim(dim=dim, sizes=self.sizes, position=self.position)

    def read(self, x: jax.Array, dim: int, offset: Index, span: Span) -> jax.Array:
        """`span` of each shard in dimension `dim` that belongs to the device `offset` further on."""
        return self.sharded(dim).read(x, self.index(offset), span)

    def write(
        self,
        x: jax.Array,
        block: jax.Array,
        dim: int,
        offset: Index,
        span: Span,
        stream: tuple[int, int] | None = None,
    ) -> jax.Array:
        """`x` with what `read` gives replaced by `block`; `stream` is as in `ShardedDim.write`."""
        return self.sharded(dim).write(x, block, self.index(offset), span, stream)

    def stream(self, direction: Direction, shard: int) -> Stream:
        """The stream round this ring of shards of length `shard`."""
        return Stream(self.axis, ring_directions(self.n, direction, shard), self.devices)


class HamiltonianRing(AxisRing):
    """A ring through all devices of several axes, which send full shards of a dimension."""

    def __init__(self, axes: tuple[str, ...], places: Sequence[Place]) -> None:
        """The ring that goes through `places`, whose indices are along `axes` in the mesh's order."""
        self.axis = in_mesh_order(axes)
        by_axis = [dict(zip(self.axis, place, strict=True)) for place in places]
        self.devices = tuple(device_number(place, self.axis) for place in by_axis)
        self.n = len(places)
        self.sizes, self.position = (self.n,), 0
        # The shards' numbers in the order of the ring, from this device's own on.
        numbers = np.asarray([device_number(place, axes) for place in by_axis])
        twice = jnp.asarray(np.tile(numbers, 2), jnp.int32)
        own = jnp.asarray(np.argsort(numbers), jnp.int32)[lax.axis_index(axes)]
        self._onward = lax.dynamic_slice(twice, (own,), (self.n,))

    def index(self, offset: Index) -> Index:
        """The number, the first axis major, of the device `offset` further along the ring."""
        return self._onward[offset % self.n]


def hamiltonian_rings(axes: tuple[str, ...], closed: Sequence[str] = ()) -> list[HamiltonianRing]:
    """One or two rings through all devices of `axes`, which share no link.

    Args:
      axes: mesh axes of more than one device, the first one major in the order of shards.
      closed: the axes whose last device is a neighbour of the first.
    """
    ordered = in_mesh_order(axes)
    sizes = tuple(lax.axis_size(axis) for axis in ordered)
    rings = disjoint_rings(sizes, tuple(axis in closed for axis in ordered))
    return [HamiltonianRing(axes, places) for places in rings]


def major_ring(axes: tuple[str, ...]) -> AxisRing:
    """The ring of the first axis, whose shards hold those of every other axis."""
    return AxisRing(axes[:1], (0,), 0)


def stage_rings(axes: tuple[str, ...], streams: int, stage: int) -> list[AxisRing]:
    """The ring that each stream goes round in a stage of an all-gather over several axes.

    Stream s gathers over the axes in the cyclic order s + 1, s + 2, ...; in the last stage, which
    moves most data, every stream uses another axis.
    """
    orders = [[(s + 1 + i) % len(axes) for i in range(len(axes))] for s in range(streams)]
    return [AxisRing(axes, tuple(sorted(o[: stage + 1])), o[stage]) for o in orders]
