"""Seconds of one item of a layer by itself: a collective, or attention."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from collective_einsum.chips import TILE_ROWS, Chip
from collective_einsum.cost import (
    all_reduce_seconds,
    all_to_all_seconds,
    dot_flops,
    offloads,
    scatters_a_plane,
    slice_sides,
)

from .. import tuning
from ..partitionings.padded_sizes import window_keys
from . import einsum_cost
from .layer_items import Attention, Transfer


def on_sparse_cores(chip: Chip) -> bool:
    """Whether SparseCores run lax's all-gathers and reduce-scatters, beside other work."""
    return offloads(chip, "all_gather") and offloads(chip, "reduce_scatter")


def transfer_seconds(transfer: Transfer, sizes: Mapping[str, int], chip: Chip) -> float:
    """Seconds of a collective by itself (appendix A.1).

    (K - 1)/K of its bytes over the bandwidth of its axes; an all-reduce twice that, and a reduce-scatter
    that the compiler makes one; an all-to-all on a ring of K chips sends them K/4 hops on average.
    """
    along = slice_sides(chip, sizes, transfer.axes)
    plane = transfer.kind == "reduce-scatter" and scatters_a_plane(chip, along)
    if plane or transfer.kind == "all-reduce":
        return all_reduce_seconds(chip, along, transfer.bytes)
    if transfer.kind != "all-to-all":
        return einsum_cost.gather_seconds(transfer, sizes, chip)
    return all_to_all_seconds(chip, along, transfer.bytes)


def attention_seconds(item: Attention, chip: Chip) -> float:
    """Seconds of scores, softmax and values: the slower of the matmuls and the reading of the cache, and
    the memory passes of the scores through the vector units."""
    computed = item.flops / dot_flops(chip, jnp.bfloat16, jnp.bfloat16)
    streamed = item.streamed_bytes / chip.reached_hbm_bandwidth
    # Rows of a key-value head's scores fill full tiles; groups of a prompt's queries share their last
    # keys.
    rows = item.queries * item.heads / item.kv_heads
    fill = max(1, TILE_ROWS / rows)
    scores = item.scores * fill
    near = window_keys(item.window, item.new)
    if near < item.new:
        scores = item.sequences * item.heads * item.queries * (item.past + near) * fill
    elif item.new > 1:
        # Where positions are sharded, every chip's queries meet the keys of the last; scores that fit
        # on-chip memory at once are all computed anyhow, in the time of groups that do not.
        at_once = 4 * item.sequences * item.heads * item.queries * item.new <= tuning.SCORES_BYTES
        share = 1 if at_once else item.queries / item.new
        scores *= 2 - share * (1 - 1 / tuning.CAUSAL_GROUPS)
    decoding = item.new == 1
    passes = tuning.DECODE_SCORE_PASSES if decoding else tuning.SCORE_PASSES
    besides = passes * 4 * scores / chip.vector_bandwidth
    if decoding:
        besides += tuning.DECODE_ATTENTION_SECONDS
    # The scores' dot waits for the keys, and then the values' dot for the values.
    return max(computed, streamed) + besides + 2 * chip.hbm_fill_seconds
