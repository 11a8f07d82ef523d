"""Seconds of lax's collectives over axes of a torus of chips, with all links of these axes at work.

Formulas of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), appendix A.1, with latency
added. They are predictions: nothing here was timed on a chip.

The devices of a chip (two on TPU7x) lie along the last axis of the mesh that is longer than one. Over
this axis each device gathers its part from other chips, and the devices of a chip exchange these over
the link between them; over other axes, the devices of a chip share its links.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..chips.chip import Chip
from ..chips.slices import folded_axes

# Least bytes of an all-reduce that SparseCores run; they run all-gathers and reduce-scatters of any size
# (TPU7x, libtpu 0.0.42.1 and 0.0.50.1; `tests/compiler_habits/test_habits.py`).
OFFLOADED_ALL_REDUCE = 2**16


class WithinChips(int):
    """The size of a mesh axis, in devices, that the devices of a chip lie along."""


def sides(chip: Chip, axis_sizes: Mapping[str, int], axes: Sequence[str]) -> list[int]:
    """The sizes of some mesh axes, as the functions below take them.

    Args:
      chip: every chip of the mesh.
      axis_sizes: of the axes of the mesh, in its order; where a chip is one device, those of `axes` are
        enough.
      axes: those whose sizes are returned.
    """
    last = next((axis for axis in reversed(tuple(axis_sizes)) if axis_sizes[axis] > 1), None)
    inside = last if chip.devices_per_chip > 1 else None
    return [
        WithinChips(axis_sizes[axis])
        if axis == inside and axis_sizes[axis] % chip.devices_per_chip == 0
        else axis_sizes[axis]
        for axis in axes
    ]


def on_slice(chip: Chip, axis_sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The axes of a mesh of these chips that lie along several sides of its slice; see `folded_axes`."""
    return folded_axes(axis_sizes, chip.torus_dims) if chip.devices_per_chip == 1 else {}


def slice_sides(
    chip: Chip,
    axis_sizes: Mapping[str, int],
    axes: Sequence[str],
    folded: Mapping[str, tuple[int, ...]] | None = None,
) -> list[int]:
    """The sides of the slice along some mesh axes: all of them carry what lax's collectives send, where
    rings go round the axes.

    Args:
      chip, axes: as of `sides`.
      axis_sizes: of all axes of the mesh, in its order.
      folded: the axes that lie along several sides, with these; as `on_slice` says unless given.
    """
    folded = on_slice(chip, axis_sizes) if folded is None else folded
    along = zip(axes, sides(chip, axis_sizes, axes), strict=True)
    return [side for axis, size in along for side in folded.get(axis, (size,))]


def all_gather_seconds(chip: Chip, axis_sizes: Sequence[int], gathered_bytes: float) -> float:
    """Seconds of an all-gather: (n - 1)/n * gathered_bytes / bandwidth + hops * hop_seconds +
    collective_seconds, and the fixed cost of SparseCores where they run it, as
    `chip.asynchronous` says.

    Args:
      chip: every chip of the mesh.
      axis_sizes: sizes of the mesh axes, from `sides`; n is the number of chips along them.
        `bandwidth` is that of all links along them, two for an axis that closes into a ring and one for
        a line; where a chip is two devices, each has half of it, but together they have all over the
        axis that both lie along.
      gathered_bytes: size of the result, on one chip, in bytes.
    """
    return _seconds(chip, axis_sizes, gathered_bytes, "all_gather")


def reduce_scatter_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of a reduce-scatter of `operand_bytes` a chip: an all-gather backwards, and as long."""
    return _seconds(chip, axis_sizes, operand_bytes, "reduce_scatter")


def _seconds(chip: Chip, axis_sizes: Sequence[int], unsharded_bytes: float, kind: str) -> float:
    if math.prod(axis_sizes) == 1:
        return 0.0
    sending = _sending(chip, axis_sizes, unsharded_bytes)
    return sending + _latency(chip, axis_sizes) + _offload(chip, kind, unsharded_bytes)


def _sending(chip: Chip, axis_sizes: Sequence[int], unsharded_bytes: float) -> float:
    """Seconds in which all links along the axes carry what the chips lack, or have too much."""
    inside = _within(chip, axis_sizes)
    chips = math.prod(axis_sizes) // inside
    bandwidth = chip.device_link_bandwidth * inside
    width = sum(links(chip, size) for size in axis_sizes if _chips(chip, size) > 1) * bandwidth
    sending = unsharded_bytes * (chips - 1) / chips / width if width else 0.0
    if inside == 1:
        return sending
    return max(sending, unsharded_bytes * (inside - 1) / inside / chip.die_bandwidth)


def all_reduce_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of an all-reduce of `operand_bytes` a chip: a reduce-scatter, then an all-gather, in one
    collective."""
    once = _seconds(chip, axis_sizes, operand_bytes, "all_reduce")
    fixed = chip.collective_seconds + _offload(chip, "all_reduce", operand_bytes)
    return 2 * once - (fixed if once else 0.0)


def all_to_all_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of an all-to-all of `operand_bytes` a chip.

    The links in the middle of the longest axis, of k chips, carry most: k/8 * operand_bytes if it
    closes into a ring, k/4 * operand_bytes on a line.
    """
    chips = [(_chips(chip, size), links(chip, size)) for size in axis_sizes]
    far = max((size / (2 * ways) for size, ways in chips if size > 1), default=0.0)
    sending = operand_bytes * far / (2 * chip.device_link_bandwidth)
    inside = _within(chip, axis_sizes)
    if inside > 1:
        sending = max(sending, operand_bytes * (inside - 1) / inside / chip.die_bandwidth)
    return sending + _latency(chip, axis_sizes)


def ring_gather_seconds(
    chip: Chip, axis_sizes: Sequence[int], gathered_bytes: float, *, full_shards: bool = False
) -> float:
    """Seconds of an all-gather or a reduce-scatter that is made of permutes, one a hop.

    With `full_shards` both directions of a ring carry full shards, as "latency" does: with an even
    number of chips one of them carries one more than the other, and the ring waits for it.
    """
    count = sum(_farthest(size, wraps(chip, size)) for size in axis_sizes)
    if not count:
        return 0.0
    n = math.prod(axis_sizes)
    width = sum(links(chip, size) * _hop_bandwidth(chip, size) for size in axis_sizes if size > 1)
    sending = gathered_bytes * (n - 1) / n / width
    if full_shards:
        most = [2 * (n // 2) / (n - 1) if wraps(chip, n) else 1.0 for n in axis_sizes if n > 1]
        sending *= sum(most) / len(most)
    return sending + count * (chip.hop_seconds + chip.permute_seconds)


def point_to_point_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of an all-to-all that is made of permutes, all under way at once."""
    seconds = all_to_all_seconds(chip, axis_sizes, operand_bytes)
    fixed = chip.permute_seconds - chip.collective_seconds
    return seconds + (fixed if hops(chip, axis_sizes) else 0.0)


def hop_seconds(chip: Chip, axis_size: int, sent_bytes: float) -> float:
    """Seconds of one hop of a ring in which every chip sends `sent_bytes` one way.

    On a line the first and the last chip are neighbours in the ring, all its links apart. Give
    axis_size=1 for a Hamiltonian ring, whose neighbours are always linked.
    """
    far = 1 if wraps(chip, axis_size) else _chips(chip, axis_size) - 1
    sending = sent_bytes / _hop_bandwidth(chip, axis_size)
    return sending + far * chip.hop_seconds + chip.permute_seconds


def links(chip: Chip, axis_size: int) -> int:
    """The links that a chip has along a mesh axis: two if it closes into a ring, one on a line."""
    return 2 if wraps(chip, axis_size) else 1


def wraps(chip: Chip, axis_size: int) -> bool:
    """Whether the chips along a mesh axis, a size from `sides`, close into a ring."""
    return chip.wraps(_chips(chip, axis_size))


def hops(chip: Chip, axis_sizes: Sequence[int]) -> int:
    """The hops from a device to the farthest one along these mesh axes."""
    chips = [_chips(chip, size) for size in axis_sizes]
    between = sum(_farthest(size, chip.wraps(size)) for size in chips)
    return between + _within(chip, axis_sizes) - 1


def _farthest(size: int, ring: bool) -> int:
    """The hops to the farthest of so many devices or chips, on a ring or on a line."""
    return size // 2 if ring else size - 1


def _hop_bandwidth(chip: Chip, axis_size: int) -> float:
    """Bytes/s one way of each device's neighbour along a mesh axis, a size from `sides`.

    Where a ring goes from one device of a chip to the other and on to the next chip, a link carries what
    one of them sends.
    """
    inside = _within(chip, [axis_size])
    if axis_size == inside > 1:
        return chip.die_bandwidth
    return chip.device_link_bandwidth * inside


def _chips(chip: Chip, axis_size: int) -> int:
    """The chips along a mesh axis, a size from `sides`."""
    return axis_size // _within(chip, [axis_size])


def _within(chip: Chip, axis_sizes: Sequence[int]) -> int:
    """The devices of one chip along these mesh axes."""
    return chip.devices_per_chip if any(isinstance(n, WithinChips) for n in axis_sizes) else 1


def _latency(chip: Chip, axis_sizes: Sequence[int]) -> float:
    """Seconds of one of the compiler's own collectives beside its bytes."""
    count = hops(chip, axis_sizes)
    return count * chip.hop_seconds + (chip.collective_seconds if count else 0.0)


def offloads(chip: Chip, kind: str) -> bool:
    """Whether SparseCores run lax's collectives of a kind, such as "all_gather", on the chip."""
    return chip.offload_seconds > 0 and kind in chip.asynchronous


def _offload(chip: Chip, kind: str, unsharded_bytes: float) -> float:
    """The fixed cost of SparseCores, if they run such a collective on the chip."""
    if kind == "all_reduce" and unsharded_bytes < OFFLOADED_ALL_REDUCE:
        return 0.0
    return chip.offload_seconds if offloads(chip, kind) else 0.0
