"""What the parts of a layer cost one after another: matmuls, attention, and collectives that wait."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from collective_einsum.chips import TILE_ROWS, Chip
from collective_einsum.cost import all_to_all_seconds

from .. import tuning
from ..models.config import ModelConfig
from . import einsum_cost
from . import streamed_cost as stream_cost
from . import two_part_cost as parts_cost
from .layer_items import Attention, Einsum, Item, Transfer

# Times that the scores, in 32 bits, are read or written: seen on v4, 3.5 in a step of decoding and
# 4.6 in a prefill.
SCORE_PASSES = 4.0
# Times more that sums too large for on-chip memory pass, if their lanes are scattered over several
# axes: their matmuls write them columns first. Seen on v4, 0.8 to 5.7 over 8192 to 32768 rows.
TURNED_PASSES = 1.5
OUTPUTS = ("w_o", "w_out")
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
    parallel = config.block == "parallel"
    # What a parallel block's feedforward waits for can run beside attention, and the other way round.
    runs_apart = parallel and bool(served.asynchronous)
    apart = attention if runs_apart else 0.0
    ahead_of_time = "all_gather" in served.asynchronous
    outputs = [i for i in items if isinstance(i, Einsum) and i.names[0] in OUTPUTS]

    def other_outputs(item: Einsum) -> float:
        """Seconds of the other output matrix, which a gather for this one can run beside."""
        others = [other for other in outputs if item in outputs and other is not item]
        return sum(einsum_cost.seconds(i, sizes, served, "none").compute for i in others)

    matmul = exposed = between = passes = 0.0
    # How far the chip is, and the links with weights that are gathered whole.
    now = links = 0.0
    feeds = config.input_names if parallel and ahead_of_time else ()
    for item in _combined(_as_run(items, feeds)):
        waits = 0.0
        if isinstance(item, Einsum):
            whole = item.gathers_weight and ahead_of_time
            how = "none" if whole else overlap
            mates = other_outputs(item) if runs_apart and item.moves_tokens else 0.0
            overlap_seconds = mates + (apart if item.moves_tokens else 0.0)
            found = einsum_cost.seconds(item, sizes, served, how, overlap_seconds)
            if overlap_seconds:
                # What runs beside attention already leaves the rest of it for others.
                alone = einsum_cost.seconds(item, sizes, served, how, mates)
                apart = max(0.0, apart - (sum(alone) - sum(found)))
            matmul, between = matmul + found.compute, between + item.activation_bytes
            now += found.compute
            waits = found.exposed
            if whole:
                links += found.exposed
                waits = max(0.0, links - (now - found.compute))
        elif isinstance(item, Transfer):
            seconds = transfer_seconds(item, sizes, chip)
            if item.of_weight and ahead_of_time:
                links += seconds
            elif not (
                runs_apart and item.name in FROM_HEADS and "all_to_all" in served.asynchronous
            ):
                waits = seconds
                links = max(links, now) + seconds
            if item.of_lanes and chip.torus_dims:
                passes += chip.scatter_passes[1] * item.bytes
                if len(item.axes) > 1 and item.bytes > chip.cmem_bytes:
                    passes += TURNED_PASSES * item.bytes
        else:
            now += attention
        exposed, now = exposed + waits, now + waits
    if overlap == "auto" and "all_gather" not in served.asynchronous:
        out = stream_cost.outgoing(config)
        saving = stream_cost.saving(items, config.input_names, out, sizes, chip, worthwhile=0.0)
        if saving is not None:
            matmul, exposed = matmul - saving.compute, exposed - saving.exposed
    if overlap == "auto":
        exposed -= parts_cost.layer_saving(config, items, sizes, served)
    return Spent(matmul, attention, exposed, between, passes)


def _as_run(items: tuple[Item, ...], feeds: tuple[str, ...]) -> list[Item]:
    """The items in the order of the compiled program: `feeds`, a parallel block's inputs of the
    feedforward, come after attention if they stand alone."""

    def late(item: Item) -> bool:
        if isinstance(item, Attention):
            return False
        return set(item.names if isinstance(item, Einsum) else (item.name,)) <= set(feeds)

    last = max((i for i, item in enumerate(items) if isinstance(item, Attention)), default=-1)
    before = items[: last + 1]
    early = [item for item in before if not late(item)]
    return [*early, *filter(late, before), *items[last + 1 :]]


def _combined(items: Iterable[Item]) -> list[Item]:
    """The items, all-reduces in a row as the one that compilers make of them."""
    found: list[Item] = []
    for item in items:
        last = found[-1] if found else None
        if isinstance(item, Transfer) and isinstance(last, Transfer) and item.joins(last):
            item = dataclasses.replace(last, bytes=last.bytes + item.bytes)
            found.pop()
        found.append(item)
    return found


def transfer_seconds(transfer: Transfer, sizes: Mapping[str, int], chip: Chip) -> float:
    """A collective by itself (appendix A.1): (K - 1)/K of its bytes over the bandwidth of its axes;
    an all-reduce twice, and an all-to-all on a ring of K as long as it takes to send an average
    K/4 hops far."""
    if transfer.kind != "all-to-all":
        once = einsum_cost.gather_seconds(transfer, sizes, chip)
        return once * (2 if transfer.kind == "all-reduce" else 1)
    return all_to_all_seconds(chip, [sizes[axis] for axis in transfer.axes], transfer.bytes)


def attention_seconds(item: Attention, chip: Chip) -> float:
    """Scores and values: the cache is streamed, and the scores pass the vector units."""
    computed = item.flops / (chip.dot_efficiency * chip.bf16_flops)
    streamed = item.streamed_bytes / (chip.stream_efficiency * chip.hbm_bandwidth)
    # Rows of a key-value head's scores fill whole tiles; of a prompt's, groups of queries share ends.
    rows = item.queries * item.heads / item.kv_heads
    scores = item.scores * max(1, TILE_ROWS / rows)
    if item.new > 1:
        # Where positions are cut, every chip's queries meet the keys of the last; scores that fit
        # on-chip memory at once are all computed anyhow, in the time of groups that do not.
        at_once = 4 * item.sequences * item.heads * item.queries * item.new <= tuning.SCORES_BYTES
        share = 1 if at_once else item.queries / item.new
        scores *= 2 - share * (1 - 1 / tuning.CAUSAL_GROUPS)
    passes = SCORE_PASSES * 4 * scores / chip.vector_bandwidth
    return max(computed, streamed) + passes + chip.dot_fill_seconds
