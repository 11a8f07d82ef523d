"""Seconds of lax's collectives over axes of a torus of chips, with all links of these axes at work.

Formulas of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), appendix A.1, with latency
added. They are predictions: nothing here was timed on a chip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..chips.chip import Chip


def all_gather_seconds(chip: Chip, axis_sizes: Sequence[int], gathered_bytes: float) -> float:
    """Seconds of an all-gather: (n - 1)/n * gathered_bytes / bandwidth + hops * hop_seconds +
    collective_seconds, and the fixed cost of SparseCores where they run it, as
    `chip.asynchronous` says.

    Args:
      chip: every chip of the mesh.
      axis_sizes: sizes of the mesh axes; n is their product. `bandwidth` is that of all links along
        them, two for an axis that closes into a ring and one for a line; where a chip is two devices,
        each has half of it, also over the axis between the two.
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
    return sending + _latency(chip, axis_sizes) + _offload(chip, kind)


def _sending(chip: Chip, axis_sizes: Sequence[int], unsharded_bytes: float) -> float:
    """Seconds in which all links along the axes carry what the chips lack, or have too much."""
    n = math.prod(axis_sizes)
    width = sum(links(chip, size) for size in axis_sizes if size > 1) * chip.device_link_bandwidth
    return unsharded_bytes * (n - 1) / n / width


def all_reduce_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of an all-reduce of `operand_bytes` a chip: a reduce-scatter, then an all-gather, in one
    collective."""
    once = _seconds(chip, axis_sizes, operand_bytes, "all_reduce")
    return 2 * once - (chip.collective_seconds + _offload(chip, "all_reduce") if once else 0.0)


def all_to_all_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of an all-to-all of `operand_bytes` a chip.

    The links in the middle of the longest axis, of k chips, carry most: k/8 * operand_bytes if it
    closes into a ring, k/4 * operand_bytes on a line.
    """
    far = max((size / (2 * links(chip, size)) for size in axis_sizes if size > 1), default=0.0)
    sending = operand_bytes * far / (2 * chip.device_link_bandwidth)
    return sending + _latency(chip, axis_sizes)


def ring_gather_seconds(
    chip: Chip, axis_sizes: Sequence[int], gathered_bytes: float, *, full_shards: bool = False
) -> float:
    """Seconds of an all-gather or a reduce-scatter that is made of permutes, one a hop.

    With `full_shards` both directions of a ring carry full shards, as "latency" does: with an even
    number of chips one of them carries one more than the other, and the ring waits for it.
    """
    count = hops(chip, axis_sizes)
    if not count:
        return 0.0
    sending = _sending(chip, axis_sizes, gathered_bytes)
    if full_shards:
        most = [2 * (n // 2) / (n - 1) if chip.wraps(n) else 1.0 for n in axis_sizes if n > 1]
        sending *= sum(most) / len(most)
    return sending + count * (chip.hop_seconds + chip.permute_seconds)


def point_to_point_seconds(chip: Chip, axis_sizes: Sequence[int], operand_bytes: float) -> float:
    """Seconds of an all-to-all that is made of permutes, all under way at once."""
    seconds = all_to_all_seconds(chip, axis_sizes, operand_bytes)
    fixed = chip.permute_seconds - chip.collective_seconds
    return seconds + (fixed if hops(chip, axis_sizes) else 0.0)


def hop_seconds(chip: Chip, axis_size: int, sent_bytes: float) -> float:
    """Seconds of one hop of a ring in which every chip sends `sent_bytes` one way.

    On a line the first and the last chip are neighbours in the ring, axis_size - 1 links apart. Give
    axis_size=1 for a Hamiltonian ring, whose neighbours are always linked.
    """
    far = 1 if chip.wraps(axis_size) else axis_size - 1
    return sent_bytes / chip.device_link_bandwidth + far * chip.hop_seconds + chip.permute_seconds


def links(chip: Chip, axis_size: int) -> int:
    """The links that a chip has along a mesh axis: two if it closes into a ring, one on a line."""
    return 2 if chip.wraps(axis_size) else 1


def hops(chip: Chip, axis_sizes: Sequence[int]) -> int:
    """The hops from a chip to the farthest one along these mesh axes."""
    return sum(size // 2 if chip.wraps(size) else size - 1 for size in axis_sizes)


def _latency(chip: Chip, axis_sizes: Sequence[int]) -> float:
    """Seconds of one of the compiler's own collectives beside its bytes."""
    count = hops(chip, axis_sizes)
    return count * chip.hop_seconds + (chip.collective_seconds if count else 0.0)


def offloads(chip: Chip, kind: str) -> bool:
    """Whether SparseCores run lax's collectives of a kind, such as "all_gather", on the chip."""
    return chip.offload_seconds > 0 and kind in chip.asynchronous


def _offload(chip: Chip, kind: str) -> float:
    """The fixed cost of SparseCores, if they run collectives of this kind on the chip."""
    return chip.offload_seconds if offloads(chip, kind) else 0.0
