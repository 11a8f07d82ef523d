"""An all-gather whose shards are used as they arrive, by any computation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from .autodiff.primitive import vary
from .collectives import AxisName
from .ops.schedule import Schedule, as_schedule
from .rings.axis_rings import hamiltonian_rings
from .rings.ring_gather import gather
from .rings.slicing import Index
from .rings.steps import finish
from .spec import sizes as checks

Carry = TypeVar("Carry")


def all_gather_fold(
    fn: Callable[[Carry, Any, jax.Array], Carry],
    init: Carry,
    shards: Any,
    *,
    axis_name: AxisName,
    schedule: str | Schedule = "auto",
) -> Carry:
    """`carry = fn(carry, shards of a device, its index)` for all devices along `axis_name`.

    The all-gather of any arrays, for computations of more than one einsum: each hop of the ring overlaps
    with `fn` of the shards that the hop before has brought. Several axes make one Hamiltonian ring.

    Args:
      fn: from the carry, one device's shards and its index, an int32 scalar equal to
        `lax.axis_index(axis_name)` there, to the next carry, of the same shapes and dtypes. The order
        of the devices differs from device to device, so it must not matter, but for roundings. Traced
        several times.
      init: the first carry, a pytree of arrays.
      shards: a pytree of arrays, as large on every device. The items of a list are sent one after the
        other, those of other trees at once. The TPU compiler begins each transfer as late as if it
        had the links for itself, and not during an operation: as many items as `fn` has large
        operations (for "latency" twice as many) overlap with all of them.
      axis_name: mesh axis or axes.
      schedule: "auto" and "latency" (shards are sent both ways, to the furthest device), or
        "unidirectional"; "blocking" gathers all of them first, with lax; or a `Schedule` of these.
        Rings of as many devices as `Schedule.rolled` names are one loop in the program.

    Returns:
      The last carry. Differentiable, as far as `fn` is.

    Raises:
      ValueError: while tracing, for an unknown axis or schedule, a schedule that cannot serve
        ("chunked"; "bidirectional", which sends halves of shards; a `wire_dtype`), no shards, or a
        carry whose type `fn` changes.
    """
    axes = checks.axis_names(axis_name)
    n = checks.axis_size(axes)
    resolved = _schedule(schedule)
    init, shards = jax.tree.map(jnp.asarray, (init, shards))
    if not jax.tree.leaves(shards):
        raise ValueError(f"all_gather_fold over {axis_name!r}: shards hold no array to gather")
    leaves, tree = jax.tree.flatten((init, shards))
    init, shards = jax.tree.unflatten(tree, vary(leaves, axes))

    def step(carry: Any, arrived: Any, index: Index) -> Any:
        after = jax.tree.map(jnp.asarray, fn(carry, arrived, jnp.asarray(index, jnp.int32)))
        _check(carry, after)
        return after

    with jax.named_scope(f"all_gather_fold[{resolved}]"):
        if n == 1:
            return step(init, shards, 0)
        if resolved.kind == "blocking":
            return _blocking(step, init, shards, axes, n)
        # One ring, of unsliced shards; it needs no axis to be closed.
        (ring,) = hamiltonian_rings(tuple(axis for axis in axes if lax.axis_size(axis) > 1))
        steps = gather(
            [ring.stream(resolved.direction, 1)],
            [shards],
            lambda shard, *_: shard,
            lambda carry, _stream, _direction, offset, arrived: step(
                init if carry is None else carry, arrived, ring.index(offset)
            ),
            rolled=resolved.rolls(n),
        )
        return finish(steps)


def _blocking(
    step: Callable[..., Any], init: Any, shards: Any, axes: tuple[str, ...], n: int
) -> Any:
    gathered = jax.tree.map(lambda leaf: lax.all_gather(leaf, axes), shards)
    carry = step(init, jax.tree.map(lambda leaf: leaf[0], gathered), 0)
    others = jax.tree.map(lambda leaf: leaf[1:], gathered)
    after, _ = lax.scan(
        lambda carry, arrived: (step(carry, *arrived), None),
        carry,
        (others, jnp.arange(1, n, dtype=jnp.int32)),
    )
    return after


def _schedule(schedule: str | Schedule) -> Schedule:
    resolved = as_schedule(schedule) or Schedule("ring", "latency")
    if resolved.kind == "chunked" or (
        resolved.kind == "ring" and resolved.direction == "bidirectional"
    ):
        raise ValueError(
            f"all_gather_fold: schedule {str(resolved)!r} sends halves of shards, and fn takes "
            "unsliced ones; choose 'auto', 'latency', 'unidirectional' or 'blocking'"
        )
    if resolved.wire_dtype is not None:
        raise ValueError(
            f"all_gather_fold: schedule {str(resolved)!r} has a wire_dtype; cast the shards "
            "instead, and in fn cast them back"
        )
    return resolved


def _check(before: Any, after: Any) -> None:
    """Raises if fn does not return a carry like the one that it got."""
    types = [jax.tree.map(lambda x: (x.shape, x.dtype.name), carry) for carry in (before, after)]
    if types[0] != types[1]:
        raise ValueError(
            f"all_gather_fold: fn returns a carry of {types[1]} for one of {types[0]}; both must "
            "have the same structure, shapes and dtypes"
        )
