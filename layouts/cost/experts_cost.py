"""The work of a mixture of experts each of which is multiplied with its own tokens only."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from collective_einsum.chips import Chip

from .. import tuning
from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size
from ..models.config import ModelConfig
from ..models.experts import Experts
from ..partitionings.expert_columns import expert_columns
from ..partitionings.expert_rooms import ExpertRooms, room_for
from ..partitionings.feedforward_layout import FeedForwardLayout, inner_token_axes, token_axes
from ..partitionings.weight_gathered import WeightGathered
from .item_seconds import transfer_seconds
from .layer_items import ACTIVATION_BYTES, EXPERTS_TOKENS, Copies, Einsum, Item, Transfer, transfer

# Bytes of a number that says how many tokens an expert has.
_COUNT_BYTES = 4


class Grouped(NamedTuple):
    """What a chip does that multiplies each of its experts with their own tokens only.

    Attributes:
      rooms: of a round; a router that likes all experts alike takes one.
      items: einsums, collectives and copies, in order.
    """

    rooms: ExpertRooms
    items: tuple[Item, ...]


class _Case(NamedTuple):
    """The arguments of `grouped`, and what follows from them: `count` experts of a chip, and `width`
    columns of each."""

    config: ModelConfig
    experts: Experts
    layout: FeedForwardLayout
    sizes: Mapping[str, int]
    tokens: int
    element_bytes: int
    count: int
    width: int


def grouped(
    config: ModelConfig,
    layout: FeedForwardLayout,
    sizes: Mapping[str, int],
    tokens: int,
    element_bytes: int,
    chip: Chip,
) -> Grouped | None:
    """The fastest way to multiply experts with their own tokens; None where a serial block does not.

    It does not where E of stationary weights is sharded over x, a chip has two parts of one expert, or
    it would take longer than all experts with all tokens.

    Args:
      config: the model.
      layout: of the feedforward.
      sizes: of the mesh axes.
      tokens: of all chips.
      element_bytes: of the weights.
      chip: every chip of the mesh.
    """
    experts = config.experts
    if experts is None or config.block != "serial":
        return None
    # Sums over E_x of sorted tokens would move several times the bytes of the tokens.
    if not isinstance(layout, WeightGathered) and sizes["x"] > 1:
        return None
    columns = expert_columns(config, layout, sizes)
    if not columns.are_apart:
        return None
    count = columns.owners.shape[-1]
    case = _Case(config, experts, layout, sizes, tokens, element_bytes, count, columns.width)
    gathered = _gathered(case)
    ways = [gathered]
    stationary = not isinstance(layout, WeightGathered)
    if stationary and token_axes(layout) == WEIGHT_AXES and size(WEIGHT_AXES, sizes) > 1:
        ways.append(_dispatched(case))
    best = min(ways, key=lambda way: _seconds(case, way, chip))
    return best if _saving(case, gathered, best, chip) > 0 else None


def _gathered(case: _Case) -> Grouped:
    """All tokens of the chips that share a weight come to each of them."""
    layout, sizes, d_model = case.layout, case.sizes, case.config.d_model
    tokens = case.tokens // size(inner_token_axes(layout), sizes)
    room = room_for(tokens * case.experts.per_token / case.experts.count, tokens)
    # Tokens are laid out by expert; results are read and written for each of a token's experts, read
    # again, and added to a wide sum.
    copied = 2 * case.count * room + tokens * (3 * min(case.experts.per_token, case.count) + 4)
    kind = "all-reduce" if layout.repeated_axes else "reduce-scatter"
    kept, elements = _kept(layout), tokens * d_model
    apart = tuple(axis for axis in kept if axis not in layout.repeated_axes)
    return Grouped(
        ExpertRooms(room),
        (
            *transfer("activations", "all-gather", apart, elements, ACTIVATION_BYTES, sizes),
            *_weight_gathers(case),
            Copies("experts", copied * d_model * ACTIVATION_BYTES),
            *_einsums(case, room),
            *(
                dataclasses.replace(sums, of_lanes=not layout.moves_tokens)
                for sums in transfer("sums", kind, kept, elements, ACTIVATION_BYTES, sizes)
            ),
        ),
    )


def _dispatched(case: _Case) -> Grouped:
    """Each token goes to the chips that have its experts."""
    sizes, d_model, chips = case.sizes, case.config.d_model, size(WEIGHT_AXES, case.sizes)
    tokens = case.tokens // chips
    per_token = case.experts.per_token
    to_expert = case.tokens * per_token / case.experts.count
    rooms = ExpertRooms(
        expert=room_for(to_expert, case.tokens),
        chip=room_for(to_expert * case.count / chips, tokens * min(per_token, case.count)),
    )
    assert rooms.chip is not None
    sent, held = chips * rooms.chip, case.count * rooms.expert
    numbers = chips * chips * case.count
    exchange = tuple(
        transfer(EXPERTS_TOKENS, "all-to-all", WEIGHT_AXES, sent * d_model, ACTIVATION_BYTES, sizes)
    )
    parts = chips * case.count // case.experts.count
    # Rows are read and written before they are sent, when they are laid out by expert, and when they
    # are put back; the results of each token's experts are read and added up.
    copied = 4 * sent + 2 * held + tokens * (per_token * parts + 2)
    return Grouped(
        rooms,
        (
            *transfer("experts' counts", "all-gather", WEIGHT_AXES, numbers, _COUNT_BYTES, sizes),
            *exchange,
            Copies("experts", copied * d_model * ACTIVATION_BYTES),
            *_einsums(case, rooms.expert),
            *exchange,
        ),
    )


def _kept(layout: FeedForwardLayout) -> tuple[str, ...]:
    """The axes over which results are summed."""
    if not isinstance(layout, WeightGathered):
        return WEIGHT_AXES
    return tuple(axis for axis in AXES if axis not in layout.batch_axes)


def _weight_gathers(case: _Case) -> Iterator[Transfer]:
    """The all-gathers of a layer's experts, which no dot of theirs overlaps; none of those that are
    stationary."""
    layout, sizes = case.layout, case.sizes
    if not isinstance(layout, WeightGathered):
        return
    stored = case.config.d_model * case.config.hidden_columns / size(WEIGHT_AXES, sizes)
    columns = tuple(axis for axis in WEIGHT_AXES if axis in layout.axes)
    for _ in (*case.config.input_names, "w_out"):
        for axes, elements in ((("x",), stored), (columns, stored * size(columns, sizes))):
            yield from transfer("experts", "all-gather", axes, elements, case.element_bytes, sizes)


def _einsums(case: _Case, room: int) -> Iterator[Einsum]:
    inputs, d_model = case.config.input_names, case.config.d_model
    for names, e, f in (
        (inputs, d_model, (case.width,) * len(inputs)),
        (("w_out",), case.width, (d_model,)),
    ):
        yield Einsum(names, room, e, f, case.element_bytes, experts=case.count)


def _seconds(case: _Case, work: Grouped, chip: Chip) -> float:
    total = tuning.GROUPED_SECONDS
    for item in work.items:
        if isinstance(item, Transfer):
            total += transfer_seconds(item, case.sizes, chip)
        elif isinstance(item, Copies):
            total += item.bytes / chip.vector_bandwidth
        elif isinstance(item, Einsum):
            total += _dot_seconds(item, chip)
    return total


def _dot_seconds(item: Einsum, chip: Chip) -> float:
    """Seconds at the chip's peak, or in which it reads the weights."""
    return max(item.flops / chip.bf16_flops, item.streamed_bytes / chip.hbm_bandwidth)


def _saving(case: _Case, gathered: Grouped, work: Grouped, chip: Chip) -> float:
    """Seconds that the matmuls of all experts with all tokens take longer, which overlap the all-gathers
    of the weights, and have the collectives of `gathered`."""
    layout, sizes = case.layout, case.sizes
    tokens = case.tokens // size(inner_token_axes(layout), sizes)
    moved = [item for item in gathered.items if isinstance(item, Transfer)]
    brought, rest = (
        sum(
            transfer_seconds(item, sizes, chip) for item in moved if (item.name == "experts") == own
        )
        for own in (True, False)
    )
    dots = sum(_dot_seconds(item, chip) for item in _einsums(case, tokens))
    return max(brought, dots) + rest - _seconds(case, work, chip)
