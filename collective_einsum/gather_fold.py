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
from .rings import multi_axis as stages
from .rings import ring_steps as ring
from .spec import sizes as checks

Carry = TypeVar("Carry")
# Past this many devices, hops are a loop in the program.
UNROLLED = 16


def all_gather_fold(
    fn: Callable[[Carry, Any, jax.Array], Carry],
    init: Carry,
    shards: Any,
    *,
    axis_name: AxisName,
    schedule: str | Schedule = "auto",
) -> Carry:
    """`carry = fn(carry, shards of a device, its index)` for all devices along `axis_name`.

    The all-gather of any arrays, for what is more than one einsum: each hop of the ring runs beside
    `fn` of what the hop before has brought. Several axes make one ring, through neighbours.

    Args:
      fn: from the carry, one device's shards and its index, as `lax.axis_index(axis_name)` is there,
        to the next carry, of the same shapes and dtypes. In which order devices come differs from
        device to device, so it should not matter, but for roundings. Traced several times.
      init: the first carry, a pytree of arrays.
      shards: a pytree of arrays, as large on every device. The items of a list travel one after the
        other, those of other trees at once. The TPU compiler begins each transfer as late as if it
        had the links for itself, and not during an operation: as many items as `fn` has large
        operations (for "latency" twice as many) spread over all of them.
      axis_name: mesh axis or axes.
      schedule: "auto" and "latency" (shards travel both ways, to the furthest device), or
        "unidirectional"; "blocking" gathers all of them first, with lax; or a `Schedule` of these.

    Returns:
      The last carry. Differentiable, as far as `fn` is.

    Raises:
      ValueError: while tracing, for an unknown axis or schedule, one that cannot serve ("chunked";
        "bidirectional", which would halve the shards; a `wire_dtype`), no shards, or a carry that
        `fn` changes the type of.
    """
    axes = checks.axis_names(axis_name)
    n = checks.axis_size(axes)
    how = _schedule(schedule)
    init, shards = jax.tree.map(jnp.asarray, (init, shards))
    if not jax.tree.leaves(shards):
        raise ValueError(f"all_gather_fold over {axis_name!r}: shards hold no array to gather")
    leaves, tree = jax.tree.flatten((init, shards))
    init, shards = jax.tree.unflatten(tree, vary(leaves, axes))

    def step(carry: Any, each: Any, index: Any) -> Any:
        after = jax.tree.map(jnp.asarray, fn(carry, each, jnp.asarray(index, jnp.int32)))
        _check(carry, after)
        return after

    with jax.named_scope(f"all_gather_fold[{how}]"):
        if n == 1:
            return step(init, shards, 0)
        if how.kind == "blocking":
            return _blocking(step, init, shards, axes, n)
        around = tuple(axis for axis in axes if lax.axis_size(axis) > 1)
        # One ring, of whole shards; it needs no axis to be closed.
        (tour,) = stages.touring(around)
        steps = ring.gather(
            [ring.Strand(tour.axis, ring.lanes(n, how.direction, 1), tour.stops)],
            [shards],
            lambda shard, *_: shard,
            lambda carry, strand, lane, offset, each: step(
                init if carry is None else carry, each, tour.index(offset)
            ),
            rolled=n > UNROLLED if how.rolled is None else how.rolled,
        )
        return ring.finish(steps)


def _blocking(
    step: Callable[..., Any], init: Any, shards: Any, axes: tuple[str, ...], n: int
) -> Any:
    gathered = jax.tree.map(lambda leaf: lax.all_gather(leaf, axes), shards)
    carry = step(init, jax.tree.map(lambda leaf: leaf[0], gathered), 0)
    others = jax.tree.map(lambda leaf: leaf[1:], gathered)
    after, _ = lax.scan(
        lambda carry, each: (step(carry, *each), None),
        carry,
        (others, jnp.arange(1, n, dtype=jnp.int32)),
    )
    return after


def _schedule(schedule: str | Schedule) -> Schedule:
    how = as_schedule(schedule) or Schedule("ring", "latency")
    if how.kind == "chunked" or (how.kind == "ring" and how.direction == "bidirectional"):
        raise ValueError(
            f"all_gather_fold: schedule {str(how)!r} would cut shards, which are passed to fn whole; "
            "choose 'auto', 'latency', 'unidirectional' or 'blocking'"
        )
    if how.wire_dtype is not None:
        raise ValueError(
            f"all_gather_fold: schedule {str(how)!r} has a wire_dtype; cast the shards instead, and "
            "in fn cast them back"
        )
    return how


def _check(before: Any, after: Any) -> None:
    """Raises if fn does not return a carry like the one that it got."""
    types = [jax.tree.map(lambda x: (x.shape, x.dtype.name), each) for each in (before, after)]
    if types[0] != types[1]:
        raise ValueError(
            f"all_gather_fold: fn returns a carry of {types[1]} for one of {types[0]}; both must "
            "have the same structure, shapes and dtypes"
        )
