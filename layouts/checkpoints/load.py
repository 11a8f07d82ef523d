"""The config and the parameters of a model in a Hugging Face folder."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from collective_einsum import Quantized
from collective_einsum.text import did_you_mean, shown

from ..arguments import as_dtype, as_flag, check_word
from ..decoding.step_checks import check_mesh_for
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import check_devices
from ..models.config import ModelConfig
from ..models.params import MATRICES, TABLES, Params, key_of, params_shapes, quantize
from ..partitionings.param_specs import param_specs, shardings
from .array_plan import array_plan, needed_tensors
from .config_fields import ConfigFields, read_fields
from .families import FAMILIES
from .family import Family, renamed_modules
from .stored_arrays import StoredArray
from .tensor_files import FLOATING, TensorFiles

Folder = str | os.PathLike[str]
Path = tuple[Any, ...]


def config_from_hf(folder: Folder, *, family: Family | None = None) -> ModelConfig:
    """The config of a model in a Hugging Face folder, without padding.

    Args:
      folder: with a config.json, of any version of transformers.
      family: how to read it; by default the one that config.json names as `model_type`.

    Raises:
      ValueError: there is no config.json, no family reads this model type, or the model needs what
        layouts lacks; the message names the field and its value.
    """
    fields = read_fields(folder)
    return _family_of(fields, family).config(fields)


def load(
    folder: Folder,
    mesh: MeshLike,
    *,
    config: ModelConfig | None = None,
    dtype: DTypeLike = jnp.bfloat16,
    weights: str = "plain",
    unrolled: bool = False,
    family: Family | None = None,
    progress: bool = False,
) -> Params:
    """The parameters of a model in a Hugging Face folder, sharded as `param_specs` says.

    All headers are checked before an array is read. Each process reads the shards of its own devices
    only, one shard at a time: of one layer if `unrolled` or in int8, else of all layers.

    Args:
      folder: with a config.json, and model.safetensors or its parts and their index.
      mesh: with axes x, y and z.
      config: that of `config_from_hf`, perhaps with padded_heads and padded_vocab; by default itself.
      dtype: of every array; floating.
      weights: "plain", or "int8" for what `quantize` makes of the same parameters: each layer's matrix
        is quantized once it is on the devices.
      unrolled: each layer's parameters are arrays of their own, as `init` makes them.
      family: as `config_from_hf`.
      progress: writes a line for each parameter to stderr.

    Raises:
      ValueError: as `config_from_hf`; a tensor is missing, unknown, of another shape or not floating; a
        file is damaged; or the mesh does not divide the model.
      ImportError: safetensors is not installed.
    """
    fields = read_fields(folder)
    own = _family_of(fields, family)
    read = own.config(fields)
    config = read if config is None else config
    if not isinstance(config, ModelConfig):
        raise ValueError(
            f"config={shown(config)} must be a ModelConfig, as config_from_hf makes it"
        )
    dtype = as_dtype(dtype, 'weights="int8"')
    check_word("weights", weights, ("plain", "int8"))
    unrolled, progress = as_flag("unrolled", unrolled), as_flag("progress", progress)
    check_devices(mesh, "to put parameters on")
    check_mesh_for(config, mesh)
    modules = own.modules_of(fields)
    with TensorFiles(folder) as files:
        prefix = own.base_prefix
        if not any(name.startswith(prefix) for name in files.tensors):
            modules = renamed_modules(modules, lambda module: module.removeprefix(prefix))
        plan = array_plan(config, modules)
        ignored = [*own.ignored, *_unused_unembedding(config, modules)]
        _check_tensors(files, needed_tensors(plan, config.layers), ignored)
        reader = _Reader(files, mesh, config, dtype, weights == "int8", progress)
        return reader.unrolled(plan) if unrolled else reader.stacked(plan)


def _family_of(fields: ConfigFields, given: Family | None) -> Family:
    if given is not None:
        if not isinstance(given, Family):
            raise ValueError(f"family={shown(given)} must be a layouts.checkpoints.Family")
        return given
    fields.refuse("quantization_config", "weights that are stored quantized", unless=(None,))
    known = {kind: family for family in FAMILIES for kind in family.model_types}
    if fields.model_type not in known:
        raise ValueError(
            f"config.json has model_type {fields.values.get('model_type')!r}, which is none of "
            f"{', '.join(sorted(known))}{did_you_mean(fields.model_type, list(known))}; a model of "
            "another type can be read with a Family of your own, passed as family="
        )
    return known[fields.model_type]


def _unused_unembedding(config: ModelConfig, modules: Any) -> list[str]:
    """A copy of a tied table that some checkpoints hold."""
    module = modules.get("unembedding")
    return [re.escape(f"{module}.weight")] if config.tied_embedding and module else []


def _check_tensors(
    files: TensorFiles, needed: dict[str, tuple[int, ...]], ignored: Iterable[str]
) -> None:
    """Refuses tensors that are missing, unknown, misshapen or not floating."""
    stored = files.tensors
    unknown = [name for name in stored if name not in needed]
    unknown = [name for name in unknown if not any(re.fullmatch(p, name) for p in ignored)]
    for name, shape in needed.items():
        if name not in stored:
            raise ValueError(
                f"the checkpoint has no tensor {name!r} of shape {shape}"
                f"{did_you_mean(name, unknown)}"
            )
        header = stored[name]
        if header.shape != shape:
            raise ValueError(
                f"{header.file}: tensor {name!r} has shape {header.shape}, but config.json makes it "
                f"{shape}"
            )
        if header.dtype not in FLOATING:
            raise ValueError(
                f"{header.file}: tensor {name!r} has dtype {header.dtype}, which is none of "
                f"{', '.join(FLOATING)}; quantized checkpoints are not read"
            )
    if unknown:
        shown_names = ", ".join(f"{stored[name].file}: {name}" for name in unknown[:4])
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise ValueError(
            f"the checkpoint has tensors that this family does not know, so that the model would "
            f"compute something else without them: {shown_names}{more}"
        )


class _Reader:
    """Reads the arrays of a plan onto a mesh."""

    def __init__(
        self,
        files: TensorFiles,
        mesh: MeshLike,
        config: ModelConfig,
        dtype: np.dtype,
        int8: bool,
        progress: bool,
    ) -> None:
        self._files, self._config, self._dtype, self._int8 = files, config, dtype, int8
        self._progress = progress
        self._shapes = params_shapes(config, dtype, unrolled=True)
        self._shardings = shardings(mesh, param_specs(config, mesh, self._shapes))
        stacked = params_shapes(config, dtype, int8=int8)
        self._stacked = shardings(mesh, param_specs(config, mesh, stacked))["blocks"]

    def unrolled(self, plan: Params) -> Params:
        """The parameters with a list of layers."""
        layers = range(self._config.layers)
        blocks = [self._tree(plan["blocks"], ("blocks",), layer) for layer in layers]
        return self._ends(plan) | {"blocks": blocks}

    def stacked(self, plan: Params) -> Params:
        """The parameters with arrays [layers, ...]."""
        read = self._stack_int8 if self._int8 else self._stack
        blocks = jax.tree_util.tree_map_with_path(read, plan["blocks"])
        return self._ends(plan) | {"blocks": blocks}

    def _ends(self, plan: Params) -> Params:
        ends = {key: value for key, value in plan.items() if key != "blocks"}
        return self._tree(ends, (), 0)

    def _tree(self, plan: Params, prefix: tuple[str, ...], layer: int) -> Params:
        def leaf(path: Path, array: StoredArray) -> Any:
            self._report((*prefix, *path), layer)
            return self._one(prefix, path, array, layer)

        return jax.tree_util.tree_map_with_path(leaf, plan)

    def _one(self, prefix: tuple[str, ...], path: Path, array: StoredArray, layer: int) -> Any:
        """One array, quantized if int8 is wanted and it is a matrix or a table."""
        shape = self._at(self._shapes, prefix, path)
        sharding = self._at(self._shardings, prefix, path)
        x = placed(
            shape.shape,
            sharding,
            lambda index: array.read(self._files, layer, index).astype(self._dtype),
        )
        name = key_of(path[-1])
        quantized = self._int8 and name in (*MATRICES, *TABLES)
        return _quantizer(name)(x) if quantized else x

    def _stack(self, path: Path, array: StoredArray) -> jax.Array:
        self._report(("blocks", *path), None)
        shape = (self._config.layers, *self._at(self._shapes, ("blocks",), path).shape)

        def read(index: tuple[slice, ...]) -> np.ndarray:
            # Layers are never sharded.
            x = None
            for layer in range(self._config.layers):
                one = array.read(self._files, layer, index[1:])
                x = np.empty((self._config.layers, *one.shape), self._dtype) if x is None else x
                x[layer] = one.astype(self._dtype)
            assert x is not None
            return x

        return placed(shape, _at_path(self._stacked, path), read)

    def _stack_int8(self, path: Path, array: StoredArray) -> Any:
        name = key_of(path[-1])
        if name not in MATRICES:
            return self._stack(path, array)
        self._report(("blocks", *path), None)
        sharding = _at_path(self._stacked, path)
        stacked: Any = None
        for layer in range(self._config.layers):
            one = self._one(("blocks",), path, array, layer)
            if stacked is None:
                stacked = _empty_stack(one, self._config.layers, sharding)
            stacked = _put_layer(stacked, one, np.int32(layer))
        return stacked

    def _at(self, tree: Any, prefix: tuple[str, ...], path: Path) -> Any:
        return _at_path(tree["blocks"][0] if prefix else tree, path)

    def _report(self, path: Path, layer: int | None) -> None:
        if self._progress:
            name = "/".join(map(key_of, path))
            where = f" of layer {layer}" if layer is not None and path[0] == "blocks" else ""
            print(f"reading {name}{where}", file=sys.stderr)


def placed(
    shape: tuple[int, ...],
    sharding: NamedSharding,
    read: Callable[[tuple[slice, ...]], np.ndarray],
) -> jax.Array:
    """An array whose shards are read one after another; devices with the same shard share a reading.

    Args:
      shape: of the whole array.
      sharding: where its shards go.
      read: an index to that shard.
    """
    devices: dict[tuple[tuple[int, int], ...], list[Any]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        index = () if index is None else index
        bounds = tuple(dim.indices(size)[:2] for dim, size in zip(index, shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    shards = []
    for bounds, same in devices.items():
        x = read(tuple(slice(*pair) for pair in bounds))
        shards += [jax.device_put(x, device) for device in same]
    return jax.make_array_from_single_device_arrays(shape, sharding, shards)


def _at_path(tree: Any, path: Path) -> Any:
    for entry in path:
        tree = tree[entry.key]
    return tree


@functools.lru_cache(maxsize=64)
def _quantizer(name: str) -> Callable[[jax.Array], Quantized]:
    """`quantize` of one array of this name."""
    return jax.jit(lambda x: quantize({name: x})[name])


def _empty_stack(one: Quantized, layers: int, sharding: Any) -> Quantized:
    """Zeros: room for `layers` arrays like `one`."""

    def make() -> Quantized:
        return jax.tree.map(lambda x: jnp.zeros((layers, *x.shape), x.dtype), one)

    return jax.jit(make, out_shardings=sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(stacked: Quantized, one: Quantized, layer: jax.Array) -> Quantized:
    return jax.tree.map(
        lambda every, x: lax.dynamic_update_index_in_dim(every, x, layer, 0), stacked, one
    )
