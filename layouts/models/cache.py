"""The KV cache as data: keys and values of every layer, and a prefix that sequences share.

Keys and values are stored [layers, batch, K, positions, D], so that a head's positions are the rows
of a matrix. Layers that store fewer positions than others have arrays of their own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
from jax import lax

import collective_einsum as ce
from collective_einsum.text import brief


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Keys or values of some positions.

    Attributes:
      values: [..., positions, D]; int8 if there are scales.
      scale: [..., positions] float32, or None.
    """

    values: jax.Array
    scale: jax.Array | None = None

    def __repr__(self) -> str:
        return brief(self)

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.values.shape[-2]

    def first(self, size: int) -> Entries:
        """The entries of the first `size` positions, or all if there are no more."""
        if size >= self.size:
            return self
        scale = self.scale
        if scale is not None:
            scale = lax.slice_in_dim(scale, 0, size, axis=scale.ndim - 1)
        return Entries(lax.slice_in_dim(self.values, 0, size, axis=self.values.ndim - 2), scale)

    def like(self, x: jax.Array) -> Entries:
        """`x` [..., positions, D], quantized or cast as these entries are stored."""
        if self.scale is None:
            return Entries(x.astype(self.values.dtype))
        q = ce.quantize(x, axis=-1)
        return Entries(q.values, lax.squeeze(q.scale, [q.scale.ndim - 1]))


# Keys and values.
Pair = tuple[Entries, Entries]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["k", "v", "shorter"], meta_fields=["positions"]
)
@dataclasses.dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of a prefix that all sequences of a batch begin with, stored once; see
    `shared_prefix`.

    Attributes:
      k, v: `Entries` of [layers, K, positions, D], of the layers that store most positions.
      positions: the length, or None for all stored positions.
      shorter: keys and values of layers whose windows store fewer positions, the last ones in order;
        layers that store as many are together.
    """

    k: Entries
    v: Entries
    positions: int | None = None
    shorter: tuple[Pair, ...] = ()

    def __repr__(self) -> str:
        return brief(self)

    @property
    def stores(self) -> tuple[Pair, ...]:
        """Keys and values of all layers, those that store most positions first."""
        return ((self.k, self.v), *self.shorter)

    @property
    def length(self) -> int:
        """Number of positions; further stored ones are padding."""
        return self.k.values.shape[-2] if self.positions is None else self.positions


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["k", "v", "lengths", "prefix", "shorter"],
    meta_fields=["positions"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Cache:
    """Keys and values of every layer, for a batch of sequences.

    Attributes:
      k, v: `Entries` of [layers, at least `batch`, K, positions, D], of the layers that store most
        positions: at least `max_length`, if any layer's attention is full.
      lengths: [batch] int32, how many positions each sequence has after the prefix; further stored ones
        are padding.
      prefix: that all sequences begin with, or None.
      positions: `max_length`, or None for all stored positions.
      shorter: keys and values of layers whose windows store fewer positions, position p in place p
        modulo their number; layers that store as many are together.
    """

    k: Entries
    v: Entries
    lengths: jax.Array
    prefix: Prefix | None = None
    positions: int | None = None
    shorter: tuple[Pair, ...] = ()

    def __repr__(self) -> str:
        return brief(self)

    @property
    def stores(self) -> tuple[Pair, ...]:
        """Keys and values of all layers, those that store most positions first."""
        return ((self.k, self.v), *self.shorter)

    def with_stores(self, stores: Sequence[Pair]) -> Cache:
        """The cache with these keys and values."""
        (k, v), *shorter = stores
        return dataclasses.replace(self, k=k, v=v, shorter=tuple(shorter))

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return self.lengths.shape[0]

    @property
    def stored_batch(self) -> int:
        """Number of stored sequences; those from `batch` on are padding."""
        return self.k.values.shape[1]

    @property
    def max_length(self) -> int:
        """Positions that each sequence has room for, after the prefix."""
        return self.k.values.shape[-2] if self.positions is None else self.positions

    @property
    def prefix_length(self) -> int:
        """Number of positions of the shared prefix."""
        return 0 if self.prefix is None else self.prefix.length
