"""A tiny Llama in a folder, written here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

FIELDS: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 67,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
MATRICES = {
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.up_proj": (48, 32),
    "mlp.gate_proj": (48, 32),
    "mlp.down_proj": (32, 48),
    "input_layernorm": (32,),
    "post_attention_layernorm": (32,),
}
# The modules of a family that names them as Llama does.
LAYER = "model.layers.{layer}."
MODULES = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "unembedding": "lm_head",
    "norm": LAYER + "input_layernorm",
    "norm_ffn": LAYER + "post_attention_layernorm",
    **{name: f"{LAYER}self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
    "in": LAYER + "mlp.up_proj",
    "gate": LAYER + "mlp.gate_proj",
    "out": LAYER + "mlp.down_proj",
}


def tensors() -> dict[str, np.ndarray]:
    """Random tensors in float32, the same each time."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (67, 32),
        "lm_head.weight": (67, 32),
        "model.norm.weight": (32,),
    }
    for layer in range(2):
        for name, shape in MATRICES.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, stored: Mapping[str, np.ndarray], **fields: Any) -> None:
    """A folder with one file; `fields` stand beside FIELDS in config.json."""
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    save_file(dict(stored), folder / "model.safetensors")


def write_parts(folder: Path, stored: Mapping[str, np.ndarray], count: int = 3) -> list[str]:
    """A folder with several files and their index; the names of the files."""
    write(folder, {})
    (folder / "model.safetensors").unlink()
    names = list(stored)
    files = {f"model-{i + 1:05d}-of-{count:05d}.safetensors": names[i::count] for i in range(count)}
    for file, own in files.items():
        save_file({name: stored[name] for name in own}, folder / file)
    index = {name: file for file, own in files.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return list(files)
