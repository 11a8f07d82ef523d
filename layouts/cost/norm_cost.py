"""Seconds of a layer's norms: what they wait for, and their memory passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from collective_einsum.chips import Chip
from collective_einsum.cost import (
    all_reduce_seconds,
    offloads,
    reduce_scatter_seconds,
    ring_gather_seconds,
    sides,
    slice_sides,
)

from .. import tuning
from ..mesh.axis_collectives import size
from ..models.config import ModelConfig
from ..partitionings.attention_placement import Placement
from ..partitionings.feedforward_layout import FeedForwardLayout, boundary_axes, token_axes
from .layer_items import ACTIVATION_BYTES, Load

# Bytes of a sum of squares.
_MOMENT_BYTES = 4
# Norms before projections.
_BEFORE = frozenset(("norm", "norm_ffn"))


class NormSeconds(NamedTuple):
    """Seconds for which norms wait for other chips, and of their passes and small operations."""

    waits: float
    rest: float


def waiting_seconds(
    config: ModelConfig,
    layout: FeedForwardLayout,
    sizes: Mapping[str, int],
    tokens: int,
    chip: Chip,
    overlap: str,
) -> float:
    """Seconds for which a layer's norms wait for their sums over the chips that share a row's features.

    Where no all-gather stands between a norm and the matmuls, as with replicated tokens, it multiplies
    their results, and sums in hops overlap them.

    Args:
      config: the model, for its number of norms.
      layout: of the feedforward.
      sizes: of the mesh axes.
      tokens: of a step, on all chips.
      chip: every chip of the mesh.
      overlap: "auto" or "none"; see `Cost`.
    """
    summed = config.norm == "rmsnorm"
    if layout.repeated_axes and not (summed and overlap == "auto"):
        return 0.0
    norms = set(config.norm_names)
    axes, rows = boundary_axes(layout), tokens / size(token_axes(layout), sizes)
    if not summed:
        # Gathers of two moments, one axis after the other.
        return len(norms) * _in_hops(axes, sizes, 2 * rows, chip, overlap)
    if sums_overlap(layout, chip):
        norms -= _BEFORE
    return len(norms) * _sum_seconds(axes, sizes, rows, chip, overlap)


def sums_overlap(layout: FeedForwardLayout, chip: Chip) -> bool:
    """Whether the sum of an rmsnorm before a projection is permutes that overlap it, under "auto".

    Where tokens are replicated, the sum is needed after the projection only. The compilers of v4 and
    v5e, which overlap lax's all-gathers with matmuls, put permutes beside it as well; those of v5p and
    v6e put them before it, and one all-reduce takes less time than the hops. Replayed with libtpu
    0.0.50.1, us a layer in permutes and in one all-reduce, decoding 32 sequences of Llama 3.1 70B in "WS
    2D all-reduce": v4 134 and 138, v5e 346 and 353, v5p 154 and 143, v6e 248 and 231. In "WS 2D batch",
    whose all-gather stands between them, 256 sequences: v4 270 and 262, v5e 766 and 754, v5p 216 and
    205, v6e 434 and 420.
    """
    served = chip.under_options()
    gathers = "all_gather" in served.asynchronous and not offloads(served, "all_gather")
    return bool(layout.repeated_axes) and gathers


def query_key_seconds(
    config: ModelConfig,
    where: Placement,
    sizes: Mapping[str, int],
    load: Load,
    chip: Chip,
    overlap: str,
) -> NormSeconds:
    """Seconds of a layer's norms of queries and keys.

    Args:
      config: the model, for the kind of the norms, if there are any.
      where: how attention shards heads, over which the sums of norms of all heads go.
      load: the workload of the step.
      sizes, chip, overlap: as in `waiting_seconds`.
    """
    if config.query_key_norm is None:
        return NormSeconds(0.0, 0.0)
    rows = load.tokens / size(where.batch_axes, sizes)
    heads = config.stored_heads / size(where.queries.kept, sizes)
    heads += max(1, config.stored_kv_heads / size(where.kv_axes, sizes))
    passed = tuning.QUERY_KEY_PASSES * rows * heads * config.d_head * ACTIVATION_BYTES
    rest = tuning.QUERY_KEY_SECONDS + passed / chip.vector_bandwidth
    if config.query_key_norm_span == "head":
        return NormSeconds(0.0, rest)
    # A layernorm sums deviations from a mean that is a sum itself. Sums of queries and of keys overlap.
    sums = 1 if config.query_key_norm == "rmsnorm" else 2
    waits = max(
        _sum_seconds(columns.kept, sizes, rows, chip, overlap)
        for columns in (where.queries, where.keys)
    )
    return NormSeconds(sums * waits, rest + (sums - 1) * tuning.QUERY_KEY_SECONDS)


def _sum_seconds(
    axes: Sequence[str], sizes: Mapping[str, int], numbers: float, chip: Chip, overlap: str
) -> float:
    """Seconds of sums of few numbers over axes that nothing overlaps; see
    `axis_collectives.all_reduce_few`."""
    if overlap == "auto":
        return all_reduce_seconds(chip, slice_sides(chip, sizes, axes), numbers * _MOMENT_BYTES)
    return _in_hops(axes, sizes, numbers, chip, overlap)


def _in_hops(
    axes: Iterable[str], sizes: Mapping[str, int], numbers: float, chip: Chip, overlap: str
) -> float:
    """Seconds of reduce-scatters or all-gathers of few numbers over one axis after the other.

    They are permutes unless the schedule is blocking. TPU7x, whose compiler makes lax's asynchronous,
    all-reduces so few bytes instead.
    """
    seconds_of: Callable[..., float] = ring_gather_seconds
    sides_of = sides
    if offloads(chip, "reduce_scatter"):
        seconds_of, sides_of = all_reduce_seconds, slice_sides
    elif overlap != "auto":
        seconds_of, sides_of = reduce_scatter_seconds, slice_sides
    # One copy of the sums for every chip.
    return sum(
        seconds_of(chip, sides_of(chip, sizes, [axis]), sizes[axis] * numbers * _MOMENT_BYTES)
        for axis in axes
    )


def replicated_bytes(
    config: ModelConfig, layout: FeedForwardLayout, sizes: Mapping[str, int], tokens: int
) -> float:
    """Bytes that norms, and the sum at the end of a layer, move where tokens are replicated."""
    if size(layout.repeated_axes, sizes) == 1:
        return 0.0
    rows = tokens * config.d_model / sizes["x"] * ACTIVATION_BYTES
    passes = tuning.REPLICATED_PASSES_WHOLE if sizes["x"] == 1 else tuning.REPLICATED_PASSES
    return passes * (len(config.norm_names) + 1) * rows
