"""The items of a mixture of experts that a feedforward does not have; see `layer_work`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, size
from ..models.config import ModelConfig
from ..partitionings.feedforward_layout import (
    FeedForwardLayout,
    boundary_axes,
    inner_token_axes,
    token_axes,
)
from ..partitionings.mesh_fit import round_up
from ..partitionings.weight_gathered import WeightGathered
from .experts_cost import Grouped, gathers
from .layer_items import ACTIVATION_BYTES, Copies, Einsum, Item, Load, transfer

# Bytes of a logit of the router, of an expert's number and of its weight.
_CHOICE_BYTES = 4


def router_items(
    config: ModelConfig, layout: FeedForwardLayout, sizes: Mapping[str, int], load: Load
) -> Iterator[Item]:
    """The logits of experts, summed over the chips that share a token, and each token's experts sent
    back to them; nothing for a config without experts."""
    experts = config.experts
    if experts is None:
        return
    split, between = boundary_axes(layout), token_axes(layout)
    rows, parts = load.tokens // size(between, sizes), size(split, sizes)
    yield Einsum(("w_router",), rows, config.d_model // parts, (experts.count,), ACTIVATION_BYTES)
    whole = round_up(rows, size((*split, *layout.repeated_axes), sizes))
    logits, sent = whole * experts.count, whole * 2 * experts.per_token
    yield from transfer("router logits", "reduce-scatter", split, logits, _CHOICE_BYTES, sizes)
    for axes, elements in (
        (layout.repeated_axes, sent / parts),
        (split, sent),
        (between if layout.moves_tokens else (), sent * size(between, sizes)),
    ):
        yield from transfer("choices", "all-gather", axes, elements, _CHOICE_BYTES, sizes)


def grouped_items(
    config: ModelConfig,
    layout: FeedForwardLayout,
    sizes: Mapping[str, int],
    load: Load,
    work: Grouped,
) -> Iterator[Item]:
    """The feedforward of sorted tokens; see `layers.grouped_experts`."""
    stays = not isinstance(layout, WeightGathered)
    kept = WEIGHT_AXES if stays else tuple(axis for axis in AXES if axis not in layout.batch_axes)
    elements = load.tokens // size(inner_token_axes(layout), sizes) * config.d_model
    apart = tuple(axis for axis in kept if axis not in layout.repeated_axes)
    yield from transfer("activations", "all-gather", apart, elements, ACTIVATION_BYTES, sizes)
    yield from gathers(config, layout, sizes, load.weight_bytes)
    yield Copies("experts", work.passed_bytes(config))
    inputs, room = config.input_names, work.sorted_rows
    for names, e, f in (
        (inputs, config.d_model, (work.width,) * len(inputs)),
        (("w_out",), work.width, (config.d_model,)),
    ):
        yield Einsum(names, work.rows, e, f, load.weight_bytes, experts=work.experts, room=room)
    kind = "all-reduce" if layout.repeated_axes else "reduce-scatter"
    for sums in transfer("sums", kind, kept, elements, ACTIVATION_BYTES, sizes):
        yield dataclasses.replace(sums, of_lanes=not layout.moves_tokens)
