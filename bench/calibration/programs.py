"""Programs of einsums with a collective, for a slice."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.ruler.compile import Target

DEVICES = 4  # of a collective
LAYERS = 4  # of a stack of weights

_Carry = tuple[jax.Array, jax.Array]


def mesh_of(slice_: Target) -> Mesh:
    """A mesh with `DEVICES` devices along its first axis, "x"; every slice has a multiple of them."""
    return slice_.mesh((DEVICES, len(slice_.devices) // DEVICES), ("x", "y"))


def on_every_device(slice_: Target, array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The array, whole on every device of a slice."""
    sharding = NamedSharding(mesh_of(slice_), P())
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)


def scaled(x: jax.Array, w: jax.Array) -> jax.Array | ce.Quantized:
    """The weights [contracted, columns], with a scale for each column where they are narrower than x."""
    narrow = w.dtype.itemsize < x.dtype.itemsize
    return ce.Quantized(w, jnp.ones((1, w.shape[1]), jnp.float32)) if narrow else w


def lower_einsums(
    einsum: Callable[[jax.Array, jax.Array], jax.Array],
    slice_: Target,
    x: jax.ShapeDtypeStruct,
    stack: jax.ShapeDtypeStruct,
) -> jax.stages.Lowered:
    """A loop over a stack of weights with an einsum of each, whose collective goes over the axis "x"."""
    mesh = mesh_of(slice_)

    def program(x: jax.Array, stack: jax.Array) -> jax.Array:
        like = jax.eval_shape(einsum, x, stack[0])

        def layer(carry: _Carry, w: jax.Array) -> tuple[_Carry, None]:
            # The barrier ties x to the layer before, so that no layer's result is eliminated.
            x, _ = lax.optimization_barrier(carry)
            return (x, einsum(x, w)), None

        return lax.scan(layer, (x, jnp.zeros(like.shape, like.dtype)), stack)[0][1]

    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=P(), out_specs=P(mesh.axis_names), check_vma=False
    )
    # The compiler chooses the result's layout: a fixed one would cost a copy after the last layer.
    jit = functools.partial(ce.jit, chip=slice_.chip, out_shardings=Format(Layout.AUTO))
    return jit(mapped).lower(on_every_device(slice_, x), on_every_device(slice_, stack))
