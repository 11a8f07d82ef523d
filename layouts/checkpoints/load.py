"""The config and the parameters of a model in a Hugging Face folder or a GGUF file."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from collective_einsum.text import did_you_mean, shown

from ..arguments import as_dtype, as_flag, check_word
from ..decoding.step_checks import check_mesh_for
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import check_devices
from ..models.config import ModelConfig
from ..models.params import Params
from ..planning.defaults import as_unrolled
from .array_plan import array_plan, needed_tensors
from .config_fields import ConfigFields, read_fields
from .expert_arrays import packed_tensors
from .families import FAMILIES
from .family import Family, Modules, renamed_modules
from .gguf_config import ROPE_FREQUENCIES, gguf_config, gguf_fields, gguf_modules
from .gguf_files import GgufFiles, gguf_paths
from .read_params import Dtypes, read_params
from .safetensors_files import SafetensorsFiles
from .tensor_files import TensorFiles

Folder = str | os.PathLike[str]


def config_from_hf(folder: Folder, *, family: Family | None = None) -> ModelConfig:
    """The config of a model in a Hugging Face folder or a GGUF file, without padding.

    Args:
      folder: with a config.json, of any version of transformers; or a .gguf file, one of the files of a
        model that is split, or a folder of one model's.
      family: how to read it; by default the one that config.json names as `model_type`.

    Raises:
      ValueError: there is no config.json, no family reads this model type, or the model needs what
        layouts lacks; the message names the field and its value.
      ImportError: it is a GGUF file, and gguf is not installed.
    """
    return _model_in(folder, family).config


def load(
    folder: Folder,
    mesh: MeshLike,
    *,
    config: ModelConfig | None = None,
    dtype: DTypeLike = jnp.bfloat16,
    norm_dtype: DTypeLike | None = None,
    weights: str = "plain",
    unrolled: bool | None = None,
    family: Family | None = None,
    progress: bool = False,
) -> Params:
    """The parameters of a model in a Hugging Face folder or a GGUF file, sharded as `param_specs` says.

    All headers are checked before an array is read. Each process reads the shards of its own devices
    only: one shard of one layer at a time, and of a large shard one chunk at a time.

    Args:
      folder: with a config.json, and model.safetensors or its parts and their index; or GGUF, as
        `config_from_hf` takes it, of which only the rows of a shard are dequantized.
      mesh: with axes x, y and z.
      config: that of `config_from_hf`, perhaps with padded_heads and padded_vocab; by default itself.
      dtype: of every array, and of activations; floating.
      norm_dtype: of norms and biases, if it is another: float32.
      weights: "plain", or "int8" for what `quantize` makes of the same parameters: each layer's matrix
        is quantized once it is on the devices.
      unrolled: each layer's parameters are arrays of their own, on TPUs by default; see `init`.
      family: as `config_from_hf`.
      progress: writes a line for each parameter to stderr.

    Raises:
      ValueError: as `config_from_hf`; a tensor is missing, unknown, of another shape or not floating; a
        file is damaged; or the mesh does not divide the model.
      ImportError: safetensors, or gguf, is not installed.
    """
    model = _model_in(folder, family)
    config = model.config if config is None else config
    if not isinstance(config, ModelConfig):
        raise ValueError(
            f"config={shown(config)} must be a ModelConfig, as config_from_hf makes it"
        )
    dtype = as_dtype(dtype, 'weights="int8"')
    dtypes = Dtypes(dtype, _norm_dtype(norm_dtype, dtype), weights == "int8")
    check_word("weights", weights, ("plain", "int8"))
    progress = as_flag("progress", progress)
    check_devices(mesh, "to put parameters on")
    unrolled = as_unrolled(unrolled, mesh)
    check_mesh_for(config, mesh)
    with model.open_files() as files:
        modules, prefix = model.modules, model.base_prefix
        if not any(name.startswith(prefix) for name in files.tensors):
            modules = renamed_modules(modules, lambda module: module.removeprefix(prefix))
        plan = array_plan(config, modules)
        ignored = [*model.ignored, *_unused_unembedding(config, modules)]
        packed = packed_tensors(plan, config.layers)
        _check_tensors(files, needed_tensors(plan, config.layers), ignored, packed)
        return read_params(files, plan, mesh, config, dtypes, unrolled=unrolled, progress=progress)


@dataclasses.dataclass(frozen=True)
class _Model:
    """A checkpoint: its config, and where its parameters are stored; `base_prefix` as of `Family`."""

    config: ModelConfig
    modules: Modules
    ignored: tuple[str, ...]
    open_files: Callable[[], TensorFiles]
    base_prefix: str = ""


def _model_in(folder: Folder, family: Family | None) -> _Model:
    paths = gguf_paths(folder)
    if not paths:
        fields = read_fields(folder)
        own = _family_of(fields, family)
        modules = own.modules_of(fields)
        return _Model(
            own.config(fields),
            modules,
            own.ignored,
            lambda: SafetensorsFiles(folder),
            own.base_prefix,
        )
    files = GgufFiles(paths)
    fields = gguf_fields(files, paths[0])
    own = _family_of(fields, family)
    config = gguf_config(files, own.config(fields))
    modules = gguf_modules(files, own.modules_of(fields), config)
    return _Model(config, modules, (*own.ignored, re.escape(ROPE_FREQUENCIES)), lambda: files)


def _norm_dtype(given: DTypeLike | None, dtype: np.dtype) -> np.dtype:
    if given is None or jnp.dtype(given) == dtype:
        return dtype
    if jnp.dtype(given) != jnp.float32:
        raise ValueError(
            f"norm_dtype={shown(given)} must be {dtype}, as dtype, or float32: norms and biases may be "
            "float32 beside other arrays"
        )
    return jnp.dtype(jnp.float32)


def _family_of(fields: ConfigFields, given: Family | None) -> Family:
    if given is not None:
        if not isinstance(given, Family):
            raise ValueError(f"family={shown(given)} must be a layouts.checkpoints.Family")
        return given
    known = {kind: family for family in FAMILIES for kind in family.model_types}
    if fields.model_type not in known:
        raise ValueError(
            f"config.json has model_type {fields.values.get('model_type')!r}, which is none of "
            f"{', '.join(sorted(known))}{did_you_mean(fields.model_type, list(known))}; a model of "
            "another type can be read with a Family of your own, passed as family="
        )
    own, quantized = known[fields.model_type], fields.get("quantization_config")
    method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
    if method not in own.quantized:
        fields.refuse("quantization_config", "weights that are stored quantized", unless=(None,))
    return own


def _unused_unembedding(config: ModelConfig, modules: Any) -> list[str]:
    """A copy of a tied table that some checkpoints hold."""
    module = modules.get("unembedding")
    return [re.escape(f"{module}.weight")] if config.tied_embedding and module else []


def _check_tensors(
    files: TensorFiles,
    needed: dict[str, tuple[int, ...]],
    ignored: Iterable[str],
    packed: Collection[str],
) -> None:
    """Refuses tensors that are missing, unknown, misshapen or not floating; those that are `packed` must
    be bytes."""
    stored, readable = files.tensors, files.readable
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
                f"{header.file}: tensor {name!r} has shape {header.shape}, but the config makes it "
                f"{shape}"
            )
        if name in packed:
            if header.dtype != "U8":
                raise ValueError(
                    f"{header.file}: tensor {name!r} has dtype {header.dtype}, but MXFP4 is stored as U8"
                )
        elif header.dtype not in readable:
            raise ValueError(
                f"{header.file}: tensor {name!r} has dtype {header.dtype}, which is none of "
                f"{', '.join(sorted(readable))}; quantized safetensors, and integers, are not read"
            )
    if unknown:
        shown_names = ", ".join(f"{stored[name].file}: {name}" for name in unknown[:4])
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise ValueError(
            f"the checkpoint has tensors that this family does not know, so that the model would "
            f"compute something else without them: {shown_names}{more}"
        )
