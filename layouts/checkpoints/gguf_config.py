"""What llama.cpp's converter makes of a model: metadata for the fields of config.json, other names of
tensors, and weights that are stored otherwise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from collective_einsum.text import did_you_mean, shown

from ..models.config import ModelConfig
from ..models.rotary import DividedScaling
from .config_fields import ConfigFields
from .family import Fused, HeadNorm, Modules, Ones, Part, renamed_modules
from .gguf_files import GgufFiles, gguf_package

# The architectures that are read, each by the model type of the same name.
ARCHITECTURES = ("gemma", "llama", "phi3", "qwen2", "qwen3")
# Those whose converter permutes queries and keys, so that pairs of dimensions lie next to each other.
_PERMUTED = ("llama",)
# Those whose converter adds 1 to the scales of norms.
_WHOLE_SCALES = ("gemma",)
# The tensor of llama.cpp by which the frequencies of Llama 3.1's rotary embedding are divided.
ROPE_FREQUENCIES = "rope_freqs.weight"

_SIZES = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
}
_OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "sliding_window": "attention.sliding_window",
}


def gguf_fields(files: GgufFiles, path: Path) -> ConfigFields:
    """The fields that a config.json of the same model would have.

    Args:
      files: with the metadata, and the tensors that say what it does not.
      path: of the file, or of the first.

    Raises:
      ValueError: the architecture is not read, or the metadata lack a size or have one for each layer.
    """
    kind = architecture_of(files)
    data = _Metadata(files.metadata, kind, f"metadata of {path.name}")
    data.refuse("expert_count", "GGUF files of mixtures of experts are not read", 0)
    values: dict[str, Any] = {field: data.size(key) for field, key in _SIZES.items()}
    values |= {field: data.get(key) for field, key in _OPTIONAL.items()}
    d_head = values["head_dim"] or values["hidden_size"] // values["num_attention_heads"]
    rotated = data.get("rope.dimension_count")
    table = files.tensors.get("token_embd.weight")
    values |= {
        "model_type": kind,
        "vocab_size": table and table.shape[0],
        "partial_rotary_factor": rotated and rotated / d_head,
        "rope_scaling": _scaling(data),
        "tie_word_embeddings": "output.weight" not in files.tensors,
        "attention_bias": "blk.0.attn_q.bias" in files.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in files.tensors,
    }
    return ConfigFields(values, path.stem, data.place)


def gguf_config(files: GgufFiles, config: ModelConfig) -> ModelConfig:
    """The config of a model as llama.cpp's converter stores it."""
    kind, rotary = architecture_of(files), config.rotary
    if kind in _WHOLE_SCALES:
        config = dataclasses.replace(config, norm_offset=0.0)
    if rotary is None:
        return config
    if ROPE_FREQUENCIES in files.tensors:
        divisors = files.read(ROPE_FREQUENCIES, (slice(None),)).astype(np.float64).tolist()
        rotary = dataclasses.replace(rotary, scaling=DividedScaling(divisors))
    rotary = dataclasses.replace(rotary, interleaved=kind in _PERMUTED or rotary.interleaved)
    return dataclasses.replace(config, rotary=rotary)


def gguf_modules(files: GgufFiles, modules: Modules, config: ModelConfig) -> Modules:
    """Modules that the config has, by their names in GGUF.

    Raises:
      ValueError: gguf has no name for one.
    """
    kind = architecture_of(files)
    arch = {name: arch for arch, name in gguf_package().MODEL_ARCH_NAMES.items()}[kind]
    names = gguf_package().get_tensor_name_map(arch, 1)

    def renamed(module: str) -> str:
        own = names.get_name(module.replace("{layer}", "0"))
        if own is None:
            raise ValueError(f"gguf has no name for the module {module!r} of architecture {kind!r}")
        return own.replace("blk.0.", "blk.{layer}.")

    absent = ("unembedding",) if config.tied_embedding else ()
    present = {name: source for name, source in modules.items() if name not in absent}
    for source in present.values():
        if not isinstance(source, str | Part | Fused | HeadNorm | Ones):
            raise ValueError(f"{source!r} is not read from GGUF files")
    return renamed_modules(present, renamed)


def architecture_of(files: GgufFiles) -> str:
    """The architecture that the metadata name.

    Raises:
      ValueError: it is not read.
    """
    kind = files.metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ValueError(
            f"GGUF metadata have general.architecture={shown(kind)}, which is none of "
            f"{', '.join(ARCHITECTURES)}{did_you_mean(str(kind), list(ARCHITECTURES))}; convert the "
            "model's Hugging Face folder, or read that"
        )
    return kind


def _scaling(data: _Metadata) -> dict[str, Any] | None:
    kind = data.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    return {
        "type": kind,
        "factor": data.get("rope.scaling.factor"),
        "original_max_position_embeddings": data.get("rope.scaling.original_context_length"),
    }


@dataclasses.dataclass(frozen=True)
class _Metadata:
    """The metadata of an architecture, whose keys begin with its name."""

    values: Mapping[str, Any]
    kind: str
    place: str

    def get(self, key: str) -> Any:
        value = self.values.get(f"{self.kind}.{key}")
        if isinstance(value, list):
            if any(one != value[0] for one in value):
                raise self._refusal(key, "is not supported: layouts has one for all layers")
            value = value[0]
        return value

    def size(self, key: str) -> int:
        value = self.get(key)
        if value is None:
            raise ValueError(f"{self.place} lack {self.kind}.{key}, a positive integer")
        return value

    def refuse(self, key: str, reason: str, unless: Any) -> None:
        if self.get(key) not in (None, unless):
            raise self._refusal(key, f"is not supported: {reason}")

    def _refusal(self, key: str, reason: str) -> ValueError:
        value = self.values[f"{self.kind}.{key}"]
        return ValueError(f"{self.place}: {self.kind}.{key}={shown(value)} {reason}")
