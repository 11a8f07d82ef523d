"""Rows that go to slots (experts, or chips) by data, in rounds of arrays whose sizes are fixed.

Each row has a slot, and a slot has room for so many rows a round. There are as many rounds as the
fullest slot needs: one where rows are spread evenly, more where they are not. No row is dropped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

State = TypeVar("State")
Room = TypeVar("Room")


class SortedRows(NamedTuple):
    """Rows sorted by slot, those without a slot last.

    Attributes:
      order: [rows], the row at each place.
      places: [rows], the place of each row.
      slots: [rows], the slot of each row; as many as there are slots where it has none.
      counts: [slots], how many rows each has.
    """

    order: jax.Array
    places: jax.Array
    slots: jax.Array
    counts: jax.Array

    @property
    def starts(self) -> jax.Array:
        """[slots], the place of the first row of each."""
        return jnp.cumsum(self.counts, dtype=jnp.int32) - self.counts

    def joined(self, size: int) -> SortedRows:
        """The same rows in slots each of which is `size` of these, one after another."""
        counts = jnp.sum(self.counts.reshape(-1, size), axis=1, dtype=jnp.int32)
        return self._replace(slots=self.slots // size, counts=counts)

    def rounds(self, room: int) -> jax.Array:
        """How many rounds the fullest slot needs."""
        return -(-jnp.max(self.counts) // room)

    def taken(self, room: int, index: jax.Array | int) -> jax.Array:
        """[slots * room], the rows of a round; any row where a slot has fewer."""
        places = self.starts[:, None] + index * room + jnp.arange(room, dtype=jnp.int32)
        return take(self.order, places.reshape(-1))

    def found(self, room: int, index: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Where each row is in what `taken` gives, and whether it is there; both [rows]."""
        within = self.places - take(self.starts, self.slots)
        has_slot = self.slots < self.counts.shape[0]
        place = self.slots * room + within % room
        return place, has_slot & (within // room == index)


def sort_rows(slots: jax.Array, count: int) -> SortedRows:
    """Sorts rows by their slots [rows], integers from 0 to `count`, which stands for none."""
    order = jnp.argsort(slots, stable=True).astype(jnp.int32)
    numbers = jnp.arange(count, dtype=jnp.int32)
    counts = jnp.sum(slots[:, None] == numbers, axis=0, dtype=jnp.int32)
    return SortedRows(order, jnp.argsort(order).astype(jnp.int32), slots, counts)


def in_rounds(
    rounds: jax.Array | int, one: Callable[[jax.Array | int, State], State], state: State
) -> State:
    """The state after every round; a single one is no loop."""
    if isinstance(rounds, int) and rounds == 1:
        return one(0, state)
    return lax.fori_loop(jnp.int32(0), rounds, one, state)


def with_a_gradient(
    run: Callable[..., jax.Array], rooms: Room, enough: Room
) -> Callable[..., jax.Array]:
    """`run(rooms, *arrays)` as a function of the arrays; its gradient is that of `run(enough, *arrays)`.

    `enough` needs a single round: no gradient goes back through a loop whose length depends on data.
    """

    @jax.custom_vjp
    def function(*arrays: Any) -> jax.Array:
        return run(rooms, *arrays)

    def forward(*arrays: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        return run(rooms, *arrays), arrays

    def backward(arrays: tuple[Any, ...], dy: jax.Array) -> tuple[Any, ...]:
        return jax.vjp(functools.partial(run, enough), *arrays)[1](dy)

    function.defvjp(forward, backward)
    return function


def take(x: jax.Array, places: jax.Array) -> jax.Array:
    """Rows of x at places that it has: the default would fill what lay outside, in a memory pass."""
    return jnp.take(x, places, axis=0, mode="clip")
