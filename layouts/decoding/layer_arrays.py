"""The arrays of each layer, as a loop over the layers takes them: a slice of stacked arrays, or a copy
of the layer's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
from jax import lax

from ..models.stacked_params import InStack, at
from ..partitionings.cache_stores import Places, index_in, store_of

# Of layers so many of which are in each group, the index of the one with this rank, in the group that a
# loop is at.
Index = Callable[[int, int], jax.Array]


class LayerArrays(Protocol):
    """Arrays of all layers, of which a loop takes those of one layer at a time.

    Attributes:
      places: for each collection of layers that are indexed together, their places among the layers
        that repeat.
    """

    @property
    def places(self) -> Sequence[Places]: ...

    def layer(self, place: int, index: Index) -> Any:
        """The arrays of the layer at this place among those that repeat."""


@dataclasses.dataclass(frozen=True)
class Stacked:
    """Arrays of all layers, stacked.

    Attributes:
      trees: pytrees of arrays [some of the layers, ...].
      places: as `LayerArrays`, for each of the trees.
      in_stack: the names of arrays that a layer gets as `InStack`.
    """

    trees: Sequence[Any]
    places: Sequence[Places]
    in_stack: tuple[str, ...] = ()

    def layer(self, place: int, index: Index) -> Any:
        """See `LayerArrays`."""
        tree = store_of(self.places, place)
        places = self.places[tree]
        at_ = index(len(places), places.index(place))
        arrays = self.trees[tree]
        if not self.in_stack:
            return jax.tree.map(lambda x: indexed(x, at_), arrays)
        left = {name: InStack(arrays[name], at_) for name in self.in_stack}
        sliced = {name: x for name, x in arrays.items() if name not in left}
        return jax.tree.map(lambda x: indexed(x, at_), sliced) | left

    def at(self, layer: int) -> Any:
        """The arrays of one layer."""
        tree, index = index_in(self.places, layer)
        return at(self.trees[tree], index)


@dataclasses.dataclass(frozen=True)
class Apart:
    """Arrays of its own for each layer, which a loop copies to where it reads those of every layer.

    Attributes:
      layers: a pytree of arrays for each layer; all alike, see `are_alike`.
      period: the number of layers that repeat.
    """

    layers: Sequence[Any]
    period: int

    @property
    def places(self) -> Sequence[Places]:
        """See `LayerArrays`: layers at one place are chosen from."""
        return [(place,) for place in range(self.period)]

    def layer(self, place: int, index: Index) -> Any:
        """See `LayerArrays`."""
        chosen = _chosen(self.layers[place :: self.period], index(1, 0))
        # Without it the compiler moves ops of the layer into the branches, once for each.
        return lax.optimization_barrier(chosen)


def are_alike(layers: Sequence[Any]) -> bool:
    """Whether pytrees have the same structure, shapes and dtypes."""
    kinds = [
        (jax.tree.structure(layer), [(x.shape, x.dtype) for x in jax.tree.leaves(layer)])
        for layer in layers
    ]
    return all(kind == kinds[0] for kind in kinds)


def indexed(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[index]."""
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _chosen(trees: Sequence[Any], index: jax.Array) -> Any:
    """One of several trees, by choices between two halves: of one choice among n trees, each of n
    branches would have all n as arguments."""
    if len(trees) == 1:
        return trees[0]
    half = len(trees) // 2
    return lax.cond(
        index < half,
        lambda: _chosen(trees[:half], index),
        lambda: _chosen(trees[half:], index - half),
    )
