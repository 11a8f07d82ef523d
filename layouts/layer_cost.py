"""What the parts of a layer cost one after another: matmuls, attention, and collectives that wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from collective_einsum.chip import Chip
from collective_einsum.cost_lax import exchange_seconds
from collective_einsum.product import ROWS

from . import einsum_cost, stream_cost
from .config import ModelConfig
from .items import Attention, Einsum, Item, Transfer
from .scores import CAUSAL_GROUPS, SCORES_BYTES

# Times that the scores, in 32 bits, are read or written: seen on v4, 3.5 in a step of decoding and
# 4.6 in a prefill.
SCORE_PASSES = 4.0
# Times more that sums too large for on-chip memory pass, if their lanes are scattered over several
# axes: their matmuls write them columns first. Seen on v4, 0.8 to 5.7 over 8192 to 32768 rows.
TURNED_PASSES = 1.5
# Transfers to attention, which a parallel block's matmuls can run beside.
FROM_HEADS = ("queries", "keys and values")


class Spent(NamedTuple):
    """Seconds of a layer, but for what stands between its parts.

    `between` are bytes of activations beside matmuls, `passes` bytes moved around collectives.
    """

    matmul: float
    attention: float
    exposed: float
    between: float
    passes: float


def spent(
    config: ModelConfig,
    items: tuple[Item, ...],
    sizes: Mapping[str, int],
    chip: Chip,
    overlap: str,
) -> Spent:
    """What the items of a layer take; `overlap` as in `cost.Cost`."""
    attention = sum(attention_seconds(item, chip) for item in items if isinstance(item, Attention))
    served = chip.under_options() if overlap == "auto" else chip
    # What a parallel block's feedforward waits for can run beside attention, and the other way round.
    apart = attention if config.block == "parallel" and served.asynchronous else 0.0
    matmul = exposed = between = passes = ahead = before = 0.0
    for item in items:
        if isinstance(item, Einsum):
            whole = item.gathers_weight and "all_gather" in served.asynchronous
            beside = apart if item.by_rows else 0.0
            how = "none" if whole else overlap
            found = einsum_cost.seconds(item, sizes, served, how, beside)
            matmul, between = matmul + found.compute, between + item.activation_bytes
            # A weight that is gathered whole is so beside the matmul before.
            exposed += max(0.0, ahead + found.exposed - before) if whole else found.exposed
            ahead, before = 0.0, found.compute
        elif isinstance(item, Transfer):
            seconds = transfer_seconds(item, sizes, chip)
            if item.of_weight and "all_gather" in served.asynchronous:
                ahead += seconds
            elif not (apart and item.name in FROM_HEADS and "all_to_all" in served.asynchronous):
                exposed += seconds
            if item.of_lanes and chip.torus_dims:
                passes += chip.scatter_passes[1] * item.bytes
                if len(item.axes) > 1 and item.bytes > chip.cmem_bytes:
                    passes += TURNED_PASSES * item.bytes
        else:
            before += attention
    if overlap == "auto" and "all_gather" not in served.asynchronous:
        out = stream_cost.outgoing(config)
        saving = stream_cost.saving(items, config.input_names, out, sizes, chip)
        if saving is not None:
            matmul, exposed = matmul - saving.compute, exposed - saving.exposed
    return Spent(matmul, attention, exposed, between, passes)


def transfer_seconds(transfer: Transfer, sizes: Mapping[str, int], chip: Chip) -> float:
    """A collective by itself (appendix A.1): (K - 1)/K of its bytes over the bandwidth of its axes;
    an all-reduce twice, and an all-to-all on a ring of K as long as it takes to send an average
    K/4 hops far."""
    if transfer.kind != "all-to-all":
        once = einsum_cost.gather_seconds(transfer, sizes, chip)
        return once * (2 if transfer.kind == "all-reduce" else 1)
    return exchange_seconds(chip, [sizes[axis] for axis in transfer.axes], transfer.bytes)


def attention_seconds(item: Attention, chip: Chip) -> float:
    """Scores and values: the cache is streamed, and the scores pass the vector units."""
    computed = item.flops / (chip.dot_efficiency * chip.bf16_flops)
    streamed = item.streamed_bytes / (chip.stream_efficiency * chip.hbm_bandwidth)
    # Rows of a key-value head's scores fill whole tiles; of a prompt's, groups of queries share ends.
    rows = item.queries * item.heads / item.kv_heads
    scores = item.scores * max(1, ROWS / rows)
    if item.new > 1:
        # Where positions are cut, every chip's queries meet the keys of the last; scores that fit
        # on-chip memory at once are all computed anyhow, in the time of groups that do not.
        at_once = 4 * item.sequences * item.heads * item.queries * item.new <= SCORES_BYTES
        share = 1 if at_once else item.queries / item.new
        scores *= 2 - share * (1 - 1 / CAUSAL_GROUPS)
    passes = SCORE_PASSES * 4 * scores / chip.vector_bandwidth
    return max(computed, streamed) + passes + chip.dot_fill_seconds
