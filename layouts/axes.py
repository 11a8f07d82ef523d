"""The three mesh axes of every layout, and single steps over some of them, on local shards.

Axes of size 1 are left out of every collective, and no axes at all leave an array as it is.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh

import collective_einsum as ce
from collective_einsum.choice import mesh_chip
from collective_einsum.product import product
from collective_einsum.schedule import as_schedule
from collective_einsum.words import shown

from .functions import wide

Axes = tuple[str, ...]
ScheduleLike = str | ce.Schedule

AXES: Axes = ("x", "y", "z")
# Feedforward weights are stored E_x F_yz, attention weights E_x H_yz.
WEIGHT_AXES: Axes = ("y", "z")


def as_mesh(mesh: Any) -> Mesh | AbstractMesh:
    """The mesh.

    Raises:
      ValueError: it is none.
    """
    if isinstance(mesh, Mesh | AbstractMesh):
        return mesh
    shape = "(X, Y, Z)"
    if isinstance(mesh, tuple | list) and all(isinstance(n, int) for n in mesh):
        shape = str((*mesh, 1, 1)[: max(3, len(mesh))])
    raise ValueError(
        f"mesh={shown(mesh)} is no jax.sharding.Mesh; make one with jax.make_mesh({shape}, "
        '("x", "y", "z"))'
    )


def check_mesh(mesh: Any) -> dict[str, int]:
    """The sizes of x, y and z.

    Raises:
      ValueError: it is no mesh, or has other axes.
    """
    names = tuple(as_mesh(mesh).axis_names)
    if sorted(names) != sorted(AXES):
        raise ValueError(
            f"layouts need a mesh with the axes {AXES}, got {names}; make one with "
            'jax.make_mesh((X, Y, Z), ("x", "y", "z")), where any of the sizes may be 1'
        )
    return {axis: mesh.shape[axis] for axis in AXES}


def local_sizes() -> dict[str, int]:
    """The sizes of x, y and z of the surrounding shard_map.

    Raises:
      ValueError: an axis is not manual here.
    """
    manual = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    missing = [axis for axis in AXES if axis not in manual]
    if missing:
        raise ValueError(
            f"a layout's layers run inside a shard_map over {AXES}, but {missing[0]!r} is not "
            f"manual here (manual axes: {manual}); call them inside jax.shard_map over a mesh with "
            "these axes, or pass mesh="
        )
    return {axis: lax.axis_size(axis) for axis in AXES}


def size(axes: Sequence[str], sizes: Mapping[str, int] | None = None) -> int:
    """The number of devices along `axes`."""
    return math.prod(sizes[a] if sizes is not None else lax.axis_size(a) for a in axes)


def live(axes: Sequence[str]) -> Axes:
    """Those of `axes` that have more than one device."""
    return tuple(axis for axis in axes if lax.axis_size(axis) > 1)


def in_order(axes: Sequence[str]) -> Axes:
    """`axes` in the order of the mesh."""
    return tuple(axis for axis in AXES if axis in axes)


def collective_schedule(schedule: ScheduleLike) -> ScheduleLike:
    """The schedule of a collective that no einsum absorbs, from that of the einsums."""
    given = as_schedule(schedule)
    if given is None:
        return "auto"
    if given.direction == "direct":
        return ce.Schedule("chunked", "direct", wire_dtype=given.wire_dtype)
    if given.kind == "blocking":
        return ce.Schedule("blocking", wire_dtype=given.wire_dtype)
    return ce.Schedule("ring", given.direction, rolled=given.rolled, wire_dtype=given.wire_dtype)


def weights_schedule(schedule: ScheduleLike) -> ScheduleLike:
    """The schedule of einsums that gather weights.

    Those are there from the start: where the compiler runs lax's gathers beside other work, each
    gather runs beside the matmuls before, whole, and no ring or chunk is better.
    """
    beside = as_schedule(schedule) is None and "all_gather" in mesh_chip().asynchronous
    return "blocking" if beside else schedule


def all_gather(x: Any, axes: Sequence[str], dim: int, schedule: ScheduleLike) -> Any:
    """Shards of `dim` joined over `axes`; of an array or a Quantized."""
    axes = live(axes)
    if not axes:
        return x
    how = collective_schedule(schedule)
    if not isinstance(x, ce.Quantized):
        return ce.all_gather(x, axes, axis=dim, schedule=how)
    scale = x.scale
    if scale.shape[dim] == x.shape[dim]:
        scale = ce.all_gather(scale, axes, axis=dim, schedule=how)
    values = ce.all_gather(x.values, axes, axis=dim, schedule=how)
    return dataclasses.replace(x, values=values, scale=scale)


def reduce_scatter(x: jax.Array, axes: Sequence[str], dim: int, schedule: ScheduleLike) -> Any:
    """Sums over `axes`, and a block of `dim` on each device."""
    axes = live(axes)
    how = collective_schedule(schedule)
    return ce.reduce_scatter(x, axes, scatter_dimension=dim, schedule=how) if axes else x


def reduce_scatter_alone(
    x: jax.Array, axes: Sequence[str], dim: int, schedule: ScheduleLike
) -> jax.Array:
    """`reduce_scatter` where nothing is left to run beside it: a ring would only add steps, so
    "auto" leaves it to lax. Blocks are a dimension of their own: where they cut tiles, the TPU
    compiler would make an all-reduce and a slice."""
    axes = live(axes)
    if not axes:
        return x
    blocks = x.reshape(*x.shape[:dim], size(axes), -1, *x.shape[dim + 1 :])
    schedule = "blocking" if schedule == "auto" else schedule
    own = reduce_scatter(blocks, axes, dim, schedule)
    return own.reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :])


def all_reduce(x: jax.Array, axes: Sequence[str], schedule: ScheduleLike) -> jax.Array:
    """Sums over `axes`. "auto" leaves them to lax: of a v4, sums of 512 rows over 4 chips take 40 us
    less than a ring's hops and the passes between them."""
    axes = live(axes)
    how = "blocking" if schedule == "auto" else collective_schedule(schedule)
    return ce.all_reduce(x, axes, schedule=how) if axes else x


def all_reduce_few(x: jax.Array, axes: Sequence[str], schedule: ScheduleLike) -> jax.Array:
    """Sums of few numbers over `axes`, in as many hops as there are to the furthest chip.

    An all-reduce takes twice as many, to send fewer bytes: here every chip is sent all of the sums,
    as its block of a reduce-scatter of copies. They may differ by roundings from chip to chip.
    """
    for axis in live(axes):
        copies = jnp.broadcast_to(x, (lax.axis_size(axis), *x.shape))
        x = reduce_scatter(copies, (axis,), 0, schedule)[0]
    return x


def all_to_all(
    x: jax.Array, axes: Sequence[str], split: int, concat: int, schedule: ScheduleLike
) -> jax.Array:
    """Blocks of `split` change places with shards of `concat`.

    "auto" leaves it to lax: for v4, its own takes 16 us where the passes around one made of permutes
    take 23 us, hidden or not (queries of 64 rows, there and back over 4x4 chips).
    """
    axes = live(axes)
    how = "blocking" if schedule == "auto" else collective_schedule(schedule)
    return ce.all_to_all(x, axes, split, concat, schedule=how) if axes else x


def own_block(x: jax.Array, axes: Sequence[str], dim: int) -> jax.Array:
    """This device's block of `dim`, cut into one for each device along `axes`, the first major."""
    axes = live(axes)
    if not axes:
        return x
    block = x.shape[dim] // size(axes)
    return lax.dynamic_slice_in_dim(x, lax.axis_index(axes) * block, block, axis=dim)


def rows(x: jax.Array) -> jax.Array:
    """[..., n] as a matrix: the TPU compiler lays a dot's operands out well only if they are."""
    return x.reshape(-1, x.shape[-1])


def values(w: Any) -> jax.Array:
    """Those of a Quantized, or the array itself."""
    return w.values if isinstance(w, ce.Quantized) else w


def local_einsum(spec: str, lhs: jax.Array, w: Any) -> jax.Array:
    """An einsum without collectives, in the wide dtype of lhs; w is an array or a Quantized.

    The scale of a Quantized is that of the last dimension of w and of the result.
    """
    left, right, out = re.split(",|->", spec)
    y = product((left, right, out), lhs, values(w), accumulator=wide(lhs.dtype))
    return y * w.scale[0] if isinstance(w, ce.Quantized) else y
