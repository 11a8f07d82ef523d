"""The predicted cost of a ring schedule, hop by hop."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..ops.einsum_op import EinsumCollective
from ..ops.schedule import Schedule
from ..rings.hamiltonian_rings import disjoint_rings
from ..rings.streams import RingDirection, ring_directions
from .dots import (
    dot_seconds,
    finishing_seconds,
    first_dot_seconds,
    pass_seconds,
    slice_copy_seconds,
)
from .lax_collectives import collective_seconds, slice_seconds
from .torus import all_gather_seconds, hop_seconds, offloads, wraps
from .workload import Estimate, Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Ring:
    """The ring of one collective of an einsum.

    Attributes:
      collective: the collective that the ring is for.
      axis: the mesh axis it goes along; None for Hamiltonian rings through all devices of all axes.
      size: its number of devices.
      streams: how many Hamiltonian rings run at once, each with a slice of every shard; else 1.
      directions: its directions, each with the slice of a shard that it carries.
      span: the length of a shard, of which the directions' sizes are fractions.
    """

    collective: EinsumCollective
    axis: str | None
    size: int
    streams: int
    directions: tuple[RingDirection, ...]
    span: int

    @property
    def own(self) -> dict[str, float]:
        """The fraction of the label that a stream has of the device's own shard."""
        return {self.collective.label: 1 / self.size / self.streams}

    def fraction(self, direction: RingDirection) -> dict[str, float]:
        """The fraction of the label that a stream moves in one direction in one hop."""
        return {self.collective.label: direction.size / self.span / self.size / self.streams}


def ring_estimate(work: Workload, collective: EinsumCollective, schedule: Schedule) -> Estimate:
    """The cost of an einsum with the ring of one of its collectives, and the other one blocking."""
    op = work.op
    ring = _ring(work, collective, schedule)
    before, after = collective_seconds(work)
    other = after if collective is op.gather else before
    sent = work.full_bytes(collective)
    minor_axes = collective.axes[1:] if ring.axis is not None else ()
    inner = all_gather_seconds(work.chip, work.slice_sides(minor_axes), sent / ring.size)
    own_dot = first_dot_seconds(work, ring.own, directions=len(ring.directions))
    hop_dots = {
        direction: dot_seconds(work, ring.fraction(direction), directions=len(ring.directions))
        for direction in ring.directions
    }
    if collective is op.gather and work.chip.copies_second_shard:
        for direction in ring.directions[1:]:
            own = first_dot_seconds(work, ring.fraction(direction), directions=len(ring.directions))
            hop_dots[direction] = own
    copied = collective.label in op.rhs[:-1]
    copying = slice_copy_seconds(work) if copied else 0.0
    # The gather over the minor axes overlaps with copies where the compiler makes it asynchronous; the
    # first hop, which sends what it gathered, then starts after them.
    overlaps = collective is op.gather and "all_gather" in work.chip.asynchronous
    hidden = min(inner, copying) if overlaps else 0.0
    during_hop = collective is op.gather and work.chip.copies_during_hop and not minor_axes
    early = copying if during_hop else 0.0
    time, sending = _hops(work, ring, sent / ring.size, own_dot, hop_dots, early)
    dots = own_dot + sum(direction.hops * dot for direction, dot in hop_dots.items())
    compute = ring.streams * dots
    finishing = finishing_seconds(work, ring.own)
    compute, time = compute + finishing, time + finishing
    exposed = max(0.0, time - compute) + inner - hidden + other
    compute += copying
    block = work.out_elements / ring.size * work.rhs_count
    memory = 2 * sent / ring.size
    if collective is op.scatter:
        compute += _addition_seconds(work, ring, block)
        if len(collective.axes) > 1:
            compute += slice_seconds(work, collective, 1 / ring.size)
        memory += 4 * block
    elif collective.label not in op.out:
        memory += 4 * block * ring.size
    else:
        # Every slice of the result is written into it, and streams slice what arrives.
        moved = 2.0 * ring.size * block * op.dtype.itemsize
        if ring.streams > 1:
            moved += 2 * sent / ring.size
        compute += pass_seconds(work, moved)
    return Estimate(
        schedule=schedule,
        compute=compute,
        communication=sending + inner + other,
        exposed=exposed,
        memory=int(memory),
    )


def _ring(work: Workload, collective: EinsumCollective, schedule: Schedule) -> _Ring:
    """The Hamiltonian rings of a gather over several axes, as far as there are such; else the ring of
    the major axis."""
    streams, sides = 0, work.sides(collective.axes)
    if collective is work.op.gather and collective.label not in work.op.rhs and len(sides) > 1:
        streams = len(disjoint_rings(tuple(sides), tuple(work.chip.wraps(side) for side in sides)))
    size = work.devices(collective) if streams else sides[0]
    span = max(2, work.sizes[collective.label] // size)
    return _Ring(
        collective=collective,
        axis=None if streams else collective.axes[0],
        size=size,
        streams=max(1, streams),
        directions=tuple(ring_directions(size, schedule.direction, span)),
        span=span,
    )


def _hops(
    work: Workload,
    ring: _Ring,
    shard_bytes: float,
    own_dot: float,
    hop_dots: Mapping[RingDirection, float],
    copying: float,
) -> tuple[float, float]:
    """Seconds of a ring with its dots, hop by hop, and seconds during which its links send.

    XLA:TPU starts a gather's hop one dot before the hop must have arrived: one dot hides it, however
    many dots there are between two hops; with two streams, two dots; in Hamiltonian rings, the dots of
    both directions (weights gathered over 4x4 on v5e and v6e), and so where `Chip.starts_hops_early`.
    The hops of a scatter's two directions follow one another, each hidden by the other direction's dot
    (v4, v5p and TPU7x). All seen in schedules of libtpu 0.0.50.1.

    Args:
      work: the einsum.
      ring: the ring.
      shard_bytes: bytes that each device sends in a hop, over all streams, of full shards.
      own_dot: seconds of a stream's dot of the device's own shard.
      hop_dots: seconds of a stream's dot of what arrives from each direction.
      copying: seconds for which weights are copied while the first hop is under way; not in the first
        result.
    """
    time, sending = own_dot * ring.streams, 0.0
    both_hide = ring.axis is None or work.chip.starts_hops_early
    dot = own_dot
    if ring.collective is work.op.scatter:
        both_hide = ring.axis is None or offloads(work.chip, "all_gather")
        # A scatter's own dot is the last one, which waits for nothing as the first one does.
        dot = dot_seconds(work, ring.own, directions=len(ring.directions))
    for hop in range(1, max((direction.hops for direction in ring.directions), default=0) + 1):
        active = [direction for direction in ring.directions if direction.hops >= hop]
        sent = [shard_bytes * direction.size / ring.span / ring.streams for direction in active]
        if ring.collective is work.op.gather:
            # Both directions leave at once; on a line each of them takes links both ways.
            both_ways = ring.axis is not None and not wraps(work.chip, ring.size)
            sent = [sum(sent) if both_ways else max(sent)]
        far = 1 if ring.axis is None else ring.size
        hops = [hop_seconds(work.chip, far, size) for size in sent]
        hiding = [dot] * len(hops)
        if hop == 1:
            # A scatter's last hops: the own dot hides that of one direction.
            hiding[1:] = [hop_dots[direction] for direction in active[1 : len(hops)]]
            hiding[0] += copying / ring.streams
        time += sum(
            max(0.0, seconds - ring.streams * hider)
            for seconds, hider in zip(hops, hiding, strict=True)
        )
        sending += sum(hops)
        dots = [hop_dots[direction] for direction in active]
        time = time + ring.streams * sum(dots)
        dot = sum(dots) if both_hide else max(dots)
    return time, sending


def _addition_seconds(work: Workload, ring: _Ring, block: float) -> float:
    """Seconds in which a scatter ring adds what arrives, blocks of so many elements.

    The dot's own loop adds a full block that arrives before the dot. The last sums of a single result
    arrive after its dot, and so do all sums of a single direction: memory passes add them, which read
    a sum of 32 bits and what arrived in the wire's dtype, and write one of that; the last sums of both
    directions are added in one pass. Halves of blocks cost what was observed.
    """
    if not ring.directions:
        return 0.0
    wire = work.op.sum_wire.itemsize
    adds = sum(direction.hops * direction.size / ring.span for direction in ring.directions)
    moved = block * (4 + 2 * wire)
    if any(direction.size < ring.span for direction in ring.directions):
        observed = work.chip.pass_seconds("add halves", adds * moved, work.rhs_count)
        return observed or adds * pass_seconds(work, moved)
    one_result = work.op.form == "sum" or work.rhs_count == 1
    if not one_result:
        return adds * block * wire / work.chip.hbm_bandwidth
    ways = len(ring.directions)
    if ways == 1:
        return adds * _pass_seconds(work, moved, block)
    fused = (adds - ways) * block * wire / work.chip.hbm_bandwidth
    return fused + _pass_seconds(work, block * (4 + (1 + ways) * wire), block)


def _pass_seconds(work: Workload, moved: float, block: float) -> float:
    """Seconds of a pass that moves so many bytes to add blocks of so many elements, as such passes were
    observed where weights are int8 and the sums of 32 bits stay on the chip."""
    if work.widened and 4 * block <= work.chip.on_chip_bytes / 2:
        return work.chip.pass_seconds("add int8", moved, work.rhs_count)
    return pass_seconds(work, moved)
