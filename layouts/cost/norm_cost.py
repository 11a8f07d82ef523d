"""Seconds of a layer's norms: what they wait for, and their passes over replicated tokens."""

from __future__ import annotations

from collections.abc import Mapping

from collective_einsum.chips import Chip
from collective_einsum.cost import (
    all_reduce_seconds,
    offloads,
    reduce_scatter_seconds,
    ring_gather_seconds,
    sides,
)

from .. import tuning
from ..mesh.axis_collectives import size
from ..models.config import ModelConfig
from ..partitionings.feedforward_layout import FeedForwardLayout, boundary_axes, token_axes
from .layer_items import ACTIVATION_BYTES

# Bytes of a sum of squares.
_MOMENT_BYTES = 4


def waiting_seconds(
    config: ModelConfig,
    layout: FeedForwardLayout,
    sizes: Mapping[str, int],
    tokens: int,
    chip: Chip,
    overlap: str,
) -> float:
    """Seconds for which a layer's norms wait for their sums over the chips that share a row's features.

    Every axis that shards features takes a reduce-scatter of few bytes, by permutes unless the schedule
    is blocking (`axis_collectives.all_reduce_few`). TPU7x, whose compiler makes lax's asynchronous,
    all-reduces so few bytes instead. Where no all-gather stands between a norm and the matmuls, as with
    replicated tokens, they overlap it: it multiplies their results.

    Args:
      config: the model, for its number of norms.
      layout: of the feedforward.
      sizes: of the mesh axes.
      tokens: of a step, on all chips.
      chip: every chip of the mesh.
      overlap: "auto" or "none"; see `Cost`.
    """
    if layout.repeated_axes:
        return 0.0
    rows = tokens / size(token_axes(layout), sizes)
    moments = 1 if config.norm == "rmsnorm" else 2
    seconds_of = ring_gather_seconds if overlap == "auto" else reduce_scatter_seconds
    if offloads(chip, "reduce_scatter"):
        seconds_of = all_reduce_seconds
    seconds = 0.0
    for axis in boundary_axes(layout):
        # One copy of the sums for every chip.
        copies = sizes[axis] * rows * moments * _MOMENT_BYTES
        seconds += seconds_of(chip, sides(chip, sizes, [axis]), copies)
    return len(config.norm_names) * seconds


def replicated_bytes(
    config: ModelConfig, layout: FeedForwardLayout, sizes: Mapping[str, int], tokens: int
) -> float:
    """Bytes that norms, and the sum at the end of a layer, move where tokens are replicated."""
    if size(layout.repeated_axes, sizes) == 1:
        return 0.0
    rows = tokens * config.d_model / sizes["x"] * ACTIVATION_BYTES
    return tuning.REPLICATED_PASSES * (len(config.norm_names) + 1) * rows
