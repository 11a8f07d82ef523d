"""Which layers' keys and values lie in the same arrays of a cache, and how many positions they store.

A layer whose attention has a window stores so many positions, and none that no later query sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..models.config import AttentionKind, ModelConfig
from .padded_sizes import padded_capacity

# Of layers, among those that repeat.
Places = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Store:
    """Layers that store as many positions of each sequence.

    Attributes:
      positions: how many, with padding.
      places: of these layers among those that repeat, ascending.
      layers: their number in the model.
      rolls: whether position p lies in place p modulo `positions`, as there are fewer than a sequence
        may have.
    """

    positions: int
    places: Places
    layers: int
    rolls: bool


def stored_positions(kind: AttentionKind, max_length: int) -> int:
    """The positions that layers with this kind of attention store of each sequence, in a cache of
    `max_length`."""
    return padded_capacity(max_length if kind.window is None else min(max_length, kind.window))


def cache_stores(config: ModelConfig, max_length: int) -> tuple[Store, ...]:
    """The stores of a cache of `max_length` positions, the largest first."""
    capacity, period = padded_capacity(max_length), len(config.kinds)
    sizes = [stored_positions(kind, max_length) for kind in config.kinds]
    stores = []
    for size in sorted(set(sizes), reverse=True):
        places = tuple(place for place in range(period) if sizes[place] == size)
        layers = sum(len(range(place, config.layers, period)) for place in places)
        stores.append(Store(size, places, layers, size < capacity))
    return tuple(stores)


def store_of(stores: Sequence[Places], place: int) -> int:
    """Which of the stores, of layers at these places, has the layers at this `place`."""
    return next(i for i, places in enumerate(stores) if place in places)


def index_in(stores: Sequence[Places], layer: int) -> tuple[int, int]:
    """Which of the stores, of layers at these places, has a layer, and its index there."""
    group, place = divmod(layer, sum(map(len, stores)))
    found = store_of(stores, place)
    return found, group * len(stores[found]) + stores[found].index(place)
