"""The programs that stand for measured ones: permutes, gathers, dots, copies and steps of a decoder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from bench.decoder_suite.phases import Phase
from collective_einsum.rings import shift
from collective_einsum.ruler.replay import Timeline

_AXES = ("x", "y", "z")
# Permutes one after another; the time of one is theirs over this.
_PERMUTES = 64


class Program(Protocol):
    """A program of one operation.

    Attributes:
      sides: the sizes of its mesh; empty for one axis of all devices.
      work: bytes or flops of one run, that a published rate counts.
    """

    @property
    def sides(self) -> tuple[int, ...]: ...

    @property
    def work(self) -> float: ...

    def seconds(self, timeline: Timeline) -> float:
        """Seconds of one run of the operation."""
        ...

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """The program on a mesh with axes x, y and z, of which it may have fewer."""
        ...


class _OnOneAxis:
    """A `Program` on one axis of all devices."""

    @property
    def sides(self) -> tuple[int, ...]:
        """One axis."""
        return ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Permute(_OnOneAxis):
    """Every device sends an f32 array to its neighbour on a ring through all devices, time after time.

    The permutes are written out: a loop would copy what arrived to where the next one departs from,
    and the bandwidth that was measured leaves no time for that.

    Attributes:
      bytes: of the array on each device; a multiple of 512.
    """

    bytes: int

    @property
    def work(self) -> float:
        """Bytes that a device sends."""
        return self.bytes

    def seconds(self, timeline: Timeline) -> float:
        """See `Program`."""
        return timeline.total_seconds / _PERMUTES

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """See `Program`."""
        order = ring_order([device.coords for device in mesh.devices.flat])

        def send(x: jax.Array) -> jax.Array:
            for _ in range(_PERMUTES):
                x = shift(x, mesh.axis_names, 1, order)
            return x

        spec = P(mesh.axis_names)
        shape = (mesh.size * self.bytes // 512, 128)
        return _lowered(send, mesh, (spec,), spec, (shape,), jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collective:
    """One of lax's collectives, along the first dimension.

    Attributes:
      kind: "all-gather", "reduce-scatter" or "all-reduce".
      shape, dtype: of the shard on each device; of an all-reduce, of its operand.
      sides: sizes of the mesh.
      axes: the mesh axes that it goes over.
    """

    kind: Literal["all-gather", "reduce-scatter", "all-reduce"]
    shape: tuple[int, ...]
    dtype: str
    sides: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def work(self) -> float:
        """Bytes of all shards together, on one device."""
        itemsize = jnp.dtype(self.dtype).itemsize
        shards = 1 if self.kind == "all-reduce" else self.devices
        return math.prod(self.shape) * itemsize * shards

    @property
    def devices(self) -> int:
        """The number of devices that it goes over."""
        sizes = dict(zip(axis_names(self.sides), self.sides, strict=True))
        return math.prod(sizes[axis] for axis in self.axes)

    def seconds(self, timeline: Timeline) -> float:
        """Seconds of the collective alone, as a profile shows it, without copies of its result."""
        return timeline.communication_seconds

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """See `Program`."""

        def run(x: jax.Array) -> jax.Array:
            if self.kind == "all-reduce":
                return lax.psum(x, self.axes)
            if self.kind == "reduce-scatter":
                return lax.psum_scatter(x, self.axes, tiled=True)
            return lax.all_gather(x, self.axes, tiled=True)

        # Every device has an array of its own, before and after.
        spec = P(mesh.axis_names)
        shards = self.devices if self.kind == "reduce-scatter" else 1
        rows = self.shape[0] * mesh.size * shards
        return _lowered(run, mesh, (spec,), spec, ((rows, *self.shape[1:]),), self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dot(_OnOneAxis):
    """[m, k] x [k, n] on every device, with a result of the same dtype.

    Attributes:
      m, k, n: sizes.
      dtype: of operands and result.
    """

    m: int
    k: int
    n: int
    dtype: str = "bfloat16"

    @property
    def work(self) -> float:
        """Flops."""
        return 2 * self.m * self.k * self.n

    def seconds(self, timeline: Timeline) -> float:
        """Seconds of the dot alone, as a profile shows it, without copies of its operands."""
        return timeline.dot_seconds

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """See `Program`."""
        shapes = ((self.m, self.k), (self.k, self.n))
        return _lowered(jnp.matmul, mesh, (P(), P()), P(), shapes, self.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Copy(_OnOneAxis):
    """A copy of a bf16 array from HBM to HBM.

    Attributes:
      bytes: of the array; a multiple of 8192.
    """

    bytes: int

    @property
    def work(self) -> float:
        """Bytes read and written."""
        return 2 * self.bytes

    def seconds(self, timeline: Timeline) -> float:
        """See `Program`."""
        return timeline.total_seconds

    def lower(self, mesh: Mesh) -> jax.stages.Lowered:
        """See `Program`."""
        return _lowered(jnp.copy, mesh, (P(),), P(), ((self.bytes // 8192, 4096),), jnp.bfloat16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A step of a decoder.

    Attributes:
      phase: what it computes, under which layouts.
      layers_only: whether the figure leaves embedding and unembedding out.
      bundles: whether its time is by the bundles that it issues. The paper's int8 steps are not: this
        compiler widens int8 weights that are slices of a scanned stack on TPU v4, which theirs need
        not have done; by bundles the step at batch 64 is 24% slower than it was measured.
    """

    phase: Phase
    layers_only: bool = False
    bundles: bool = False


def ring_order(places: Sequence[Sequence[int]]) -> list[int]:
    """Devices in the order of a ring of linked neighbours, through all chips of a slice n x 2.

    Args:
      places: the coordinates of every device, in the flat order of the mesh. All but two of the sides
        are 1, and one of these is 2.

    Raises ValueError for another slice.
    """
    sides = [(len(set(along)), axis) for axis, along in enumerate(zip(*places, strict=True))]
    *others, (two, short), (_, long) = sorted(sides)
    if two != 2 or any(side > 1 for side, _ in others):
        raise ValueError(
            f"no ring is known for a slice of sides {[side for side, _ in sides]}; give one with "
            "two sides, one of them 2"
        )

    def along(device: int) -> tuple[int, int]:
        place = places[device]
        there = place[short] == min(other[short] for other in places)
        return (0, place[long]) if there else (1, -place[long])

    return sorted(range(len(places)), key=along)


def axis_names(sides: Sequence[int]) -> tuple[str, ...]:
    """The names of the axes of a mesh of these sides; one where there are no sides."""
    return _AXES[: len(sides)] or _AXES[:1]


def _lowered(
    function: Callable[..., jax.Array],
    mesh: Mesh,
    specs: tuple[P, ...],
    out_spec: P,
    shapes: Sequence[tuple[int, ...]],
    dtype: DTypeLike,
) -> jax.stages.Lowered:
    """A function of local arrays, lowered for global shapes of one dtype."""
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out_spec, check_vma=False)
    arrays = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return jax.jit(mapped).lower(*arrays)
