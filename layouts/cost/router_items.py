"""The items of a router; see `layer_work`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ..mesh.axis_collectives import size
from ..models.config import ModelConfig
from ..partitionings.feedforward_layout import FeedForwardLayout, boundary_axes, token_axes
from ..partitionings.mesh_fit import round_up
from .layer_items import ACTIVATION_BYTES, Einsum, Item, Load, transfer

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
    columns = experts.count + experts.shared_router
    yield Einsum(("w_router",), rows, config.d_model // parts, (columns,), ACTIVATION_BYTES)
    whole = round_up(rows, size((*split, *layout.repeated_axes), sizes))
    logits = whole * columns
    sent = whole * (2 * experts.per_token + experts.shared_router)
    yield from transfer("router logits", "reduce-scatter", split, logits, _CHOICE_BYTES, sizes)
    for axes, elements in (
        (layout.repeated_axes, sent / parts),
        (split, sent),
        (between if layout.moves_tokens else (), sent * size(between, sizes)),
    ):
        yield from transfer("choices", "all-gather", axes, elements, _CHOICE_BYTES, sizes)
