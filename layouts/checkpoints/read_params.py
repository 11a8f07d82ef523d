"""Reading the arrays of a plan onto a mesh, in little host memory.

One layer of one parameter is read at a time, a shard after a shard, and a large shard in chunks; each is
on its devices before the next is read.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import KeyPath

from ..mesh.axes import MeshLike
from ..models.config import ModelConfig
from ..models.params import MATRICES, TABLES, Params, key_of, params_shapes, quantize
from ..models.stacked_params import Weight
from ..partitionings.param_specs import param_specs, shardings
from .stored_arrays import Index, StoredArray
from .tensor_files import TensorFiles

# Bytes that are read at a time; conversions and transposes take several times as much.
CHUNK_BYTES = 2**25
Read = Callable[[Index], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dtypes:
    """What arrays are made of.

    Attributes:
      weights: the dtype of matrices and tables, or what they stand for.
      vectors: that of norms and biases.
      int8: whether matrices and tables are quantized.
    """

    weights: np.dtype
    vectors: np.dtype
    int8: bool

    def of(self, name: str) -> np.dtype:
        """The dtype of a parameter of this name before it is quantized."""
        return self.weights if name in (*MATRICES, *TABLES) else self.vectors

    def quantizes(self, name: str) -> bool:
        """Whether a parameter of this name is quantized."""
        return self.int8 and name in (*MATRICES, *TABLES)


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A parameter, in one layer if it is of a layer.

    Attributes:
      path: its keys in the tree.
      array: where it is stored.
      shape: its shape.
      sharding: where its shards go.
    """

    path: tuple[str, ...]
    array: StoredArray
    shape: tuple[int, ...]
    sharding: NamedSharding


def read_params(
    files: TensorFiles,
    plan: Params,
    mesh: MeshLike,
    config: ModelConfig,
    dtypes: Dtypes,
    *,
    unrolled: bool,
    progress: bool,
) -> Params:
    """The parameters of a plan, sharded as `param_specs` says.

    Args:
      files: open, and checked.
      plan: of `array_plan`.
      mesh: with axes x, y and z.
      config: the model, with padding.
      dtypes: of the arrays.
      unrolled: each layer's parameters are arrays of their own.
      progress: writes a line for each parameter to stderr.
    """
    reader = _Reader(files, config.layers, dtypes, progress)
    leaves = _leaves(plan, mesh, config)
    blocks = leaves.pop("blocks")

    def layer(i: int) -> Params:
        return jax.tree.map(lambda leaf: reader.one(leaf, i), blocks)

    ends = jax.tree.map(lambda leaf: reader.one(leaf, 0), leaves)
    if unrolled:
        return ends | {"blocks": [layer(i) for i in range(config.layers)]}
    return ends | {"blocks": jax.tree.map(reader.stacked, blocks)}


def _leaves(plan: Params, mesh: MeshLike, config: ModelConfig) -> Params:
    """The plan with a `_Leaf` for each array; "blocks" is the tree of one layer."""
    shapes = params_shapes(config, unrolled=True)
    placed = shardings(mesh, param_specs(config, mesh, shapes))
    for tree in (shapes, placed):
        tree["blocks"] = tree["blocks"][0]

    def leaf(path: KeyPath, array: StoredArray, shape: Any, sharding: NamedSharding) -> _Leaf:
        return _Leaf(tuple(map(key_of, path)), array, shape.shape, sharding)

    return jax.tree_util.tree_map_with_path(leaf, plan, shapes, placed)


class _Reader:
    def __init__(self, files: TensorFiles, layers: int, dtypes: Dtypes, progress: bool) -> None:
        self._files, self._layers, self._dtypes = files, layers, dtypes
        self._progress = progress

    def one(self, leaf: _Leaf, layer: int) -> Weight:
        """A parameter of one layer, or of none, quantized if it is to be."""
        self._report(leaf, f" of layer {layer}" if leaf.path[0] == "blocks" else "")
        return self._read(leaf, layer)

    def stacked(self, leaf: _Leaf) -> Weight:
        """A parameter of all layers, [layers, ...]."""
        self._report(leaf, "")
        stacked: Any = None
        for layer in range(self._layers):
            own = self._read(leaf, layer)
            if stacked is None:
                stacked = _empty_stack(own, self._layers)
            stacked = _put_layer(stacked, own, np.int32(layer))
        return stacked

    def _read(self, leaf: _Leaf, layer: int) -> Weight:
        name = leaf.path[-1]
        dtype = self._dtypes.of(name)

        def read(index: Index) -> np.ndarray:
            return leaf.array.read(self._files, layer, index).astype(dtype, copy=False)

        x = placed(leaf.shape, dtype, leaf.sharding, read)
        return _quantizer(name)(x) if self._dtypes.quantizes(name) else x

    def _report(self, leaf: _Leaf, where: str) -> None:
        if self._progress:
            print(f"reading {'/'.join(leaf.path)}{where}", file=sys.stderr)


def placed(
    shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding, read: Read
) -> jax.Array:
    """An array whose shards are read one after another; devices with the same shard share a reading.

    Args:
      shape: of the whole array.
      dtype: of what is read.
      sharding: where its shards go.
      read: an index to that slice, an array that nobody else has.
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = () if index is None else index
        bounds = tuple(dim.indices(size)[:2] for dim, size in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    shards = [x for bounds, same in devices.items() for x in _shard(bounds, dtype, same, read)]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _shard(
    bounds: tuple[tuple[int, int], ...], dtype: np.dtype, devices: list[Any], read: Read
) -> list[jax.Array]:
    """A shard on each of the devices that have it."""
    index = tuple(slice(*pair) for pair in bounds)
    shape = tuple(stop - start for start, stop in bounds)
    if math.prod(shape) * dtype.itemsize <= CHUNK_BYTES:
        x = read(index)
        # A transfer holds the host's copy until it is done.
        return jax.block_until_ready([jax.device_put(x, device) for device in devices])
    start, stop = bounds[0]
    rows = max(1, CHUNK_BYTES // (math.prod(shape[1:]) * dtype.itemsize))
    shards = [jnp.zeros(shape, dtype, device=device) for device in devices]
    for low in range(start, stop, rows):
        chunk = read((slice(low, min(low + rows, stop)), *index[1:]))
        moved = [jax.device_put(chunk, device) for device in devices]
        at = np.int32(low - start)
        shards = [_put_rows(x, y, at) for x, y in zip(shards, moved, strict=True)]
        jax.block_until_ready(shards)
    return shards


@functools.partial(jax.jit, donate_argnums=0)
def _put_rows(shard: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    return lax.dynamic_update_slice_in_dim(shard, rows, start, 0)


@functools.lru_cache(maxsize=64)
def _quantizer(name: str) -> Callable[[jax.Array], Weight]:
    """`quantize` of one array of this name."""
    return jax.jit(lambda x: quantize({name: x})[name])


def _empty_stack(one: Weight, layers: int) -> Weight:
    """Zeros: room for `layers` arrays like `one`, sharded as it is."""

    def make() -> Weight:
        return jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), one)

    def stacked(x: jax.Array) -> NamedSharding:
        assert isinstance(x.sharding, NamedSharding)
        return NamedSharding(x.sharding.mesh, PartitionSpec(None, *x.sharding.spec))

    return jax.jit(make, out_shardings=jax.tree.map(stacked, one))()


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(stacked: Weight, one: Weight, layer: jax.Array) -> Weight:
    return jax.tree.map(
        lambda every, x: lax.dynamic_update_index_in_dim(every, x, layer, 0), stacked, one
    )
