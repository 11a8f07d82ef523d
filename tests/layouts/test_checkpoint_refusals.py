"""What of a Hugging Face folder is refused, in words that name the file and the tensor, or the field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import layouts
from layouts.checkpoints import load

from .checkpoint_files import FIELDS, tensors, write, write_parts

UP = "model.layers.1.mlp.up_proj.weight"
Stored = dict[str, np.ndarray]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, tensors())
    return tmp_path


def renamed(stored: Stored) -> None:
    stored[UP.replace("up_proj", "up_proj_")] = stored.pop(UP)


EDITS: dict[str, tuple[Callable[[Stored], Any], str]] = {
    "missing": (lambda t: t.pop(UP), rf"no tensor '{UP}' of shape \(48, 32\)"),
    "renamed": (renamed, r"did you mean '.*up_proj_\.weight'"),
    "misshapen": (
        lambda t: t.update({UP: t[UP].T.copy()}),
        rf"model\.safetensors: tensor '{UP}' has shape \(32, 48\), .*\(48, 32\)",
    ),
    "integers": (
        lambda t: t.update({UP: np.ones((48, 32), np.int8)}),
        rf"model\.safetensors: tensor '{UP}' has dtype I8",
    ),
    "extra": (
        lambda t: t.update({"model.more.weight": t[UP]}),
        r"does not know.*model\.safetensors: model\.more\.weight",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_tensors_that_do_not_fit(mesh_of: Any, tmp_path: Path, edit: str) -> None:
    change, message = EDITS[edit]
    stored = tensors()
    change(stored)
    write(tmp_path, stored)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, mesh_of((1, 1, 1), "xyz"))


def test_damaged_files(mesh_of: Any, tmp_path: Path) -> None:
    mesh = mesh_of((1, 1, 1), "xyz")
    first = tmp_path / write_parts(tmp_path, tensors())[0]
    whole = first.read_bytes()
    first.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=f"{first.name} is no whole safetensors file"):
        load(tmp_path, mesh)
    first.unlink()
    with pytest.raises(ValueError, match=rf"names {first.name}, but .* no such file"):
        load(tmp_path, mesh)
    first.write_bytes(whole)
    index = tmp_path / "model.safetensors.index.json"
    names = json.loads(index.read_text())
    names["weight_map"]["other"] = first.name
    index.write_text(json.dumps(names))
    with pytest.raises(ValueError, match=f"says that {first.name} holds 'other'"):
        load(tmp_path, mesh)
    index.unlink()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is in PyTorch's own format"):
        load(tmp_path, mesh)


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "other layers": (
        {"model_type": "qwen3", "layer_types": ["linear_attention"] * 2},
        "layouts has no 'linear_attention'",
    ),
    "scaling": (
        {"rope_scaling": {"type": "proportional", "factor": 2.0}},
        "rope_scaling=.* no rotary scaling of type 'proportional', only linear, dynamic, llama3",
    ),
    "longrope": (
        {"model_type": "phi3", "rope_parameters": {"rope_type": "longrope"}},
        "rope_parameters=.* must have a list of numbers 'short_factor'",
    ),
    "clipped": ({"model_type": "olmo", "clip_qkv": "8"}, "clip_qkv='8' must be a number"),
    "norms behind sums": (
        {"model_type": "opt", "do_layer_norm_before": False},
        "do_layer_norm_before=False .* no norm behind the sums",
    ),
    "projected embedding": (
        {"model_type": "opt", "word_embed_proj_dim": 8},
        "word_embed_proj_dim=8 .* no embedding of another width",
    ),
    "phi": ({"model_type": "phi", "qk_layernorm": True}, "qk_layernorm=True is not supported"),
    "activation": ({"hidden_act": "tanh"}, "hidden_act='tanh' is not supported; activations are"),
    "unknown": ({"model_type": "lama"}, "'lama', which is none of .*did you mean 'llama'"),
    "experts": ({"model_type": "deepseek_v3"}, "'deepseek_v3', which is none of"),
    "absent type": ({"model_type": None}, "has model_type None"),
    "quantized": (
        {"quantization_config": {"quant_method": "fp8"}},
        "quantization_config=.* no weights that are stored quantized",
    ),
    "absent size": ({"hidden_size": None}, "lacks 'hidden_size', a positive integer"),
    "size": ({"num_hidden_layers": "2"}, "num_hidden_layers='2' must be a positive integer"),
    "chunked": (
        {
            "model_type": "mistral",
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "chunked_attention"],
        },
        "layer_types=.*layouts has no 'chunked_attention'",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fields_that_are_refused(tmp_path: Path, change: str) -> None:
    fields, message = CHANGES[change]
    write(tmp_path, {}, **fields)
    with pytest.raises(ValueError, match=message):
        layouts.config_from_hf(tmp_path)


def test_windows(tmp_path: Path) -> None:
    write(tmp_path, {}, model_type="mistral", sliding_window=16)
    (kind,) = layouts.config_from_hf(tmp_path).attention_kinds
    assert kind.window == 16
    # A window that never bites is none.
    write(tmp_path, {}, model_type="mistral", sliding_window=FIELDS["max_position_embeddings"])
    assert layouts.config_from_hf(tmp_path).attention_kinds == ()
    write(tmp_path, {}, model_type="qwen2", use_sliding_window=False, sliding_window=4)
    assert layouts.config_from_hf(tmp_path).biases == ("q", "kv")


def test_older_config(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    write(tmp_path, {}, rope_parameters={**scaling, "rope_theta": 100.0})
    newer = layouts.config_from_hf(tmp_path)
    write(tmp_path, {}, rope_theta=100.0, rope_scaling=scaling)
    assert layouts.config_from_hf(tmp_path) == newer
    write(tmp_path, {}, rope_theta=100.0, rope_scaling={"type": "linear", "factor": 4.0})
    assert layouts.config_from_hf(tmp_path) == newer


def test_folders_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json; give the folder"):
        layouts.config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        layouts.config_from_hf(tmp_path)


def test_arguments(mesh_of: Any, folder: Path) -> None:
    mesh: Any = mesh_of((2, 2, 2), "xyz")
    wrong: Any = "llama"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"weights": "int4"}, "weights='int4' is none of"),
        ({"dtype": "int8"}, "must be a floating dtype"),
        ({"config": wrong}, "must be a ModelConfig"),
        ({"family": wrong}, r"must be a layouts\.checkpoints\.Family"),
        ({"unrolled": 1}, "unrolled=1 must be True or False"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load(folder, mesh, **options)
    with pytest.raises(ValueError, match="padded_heads"):
        load(folder, mesh_of((1, 8, 1), "xyz"))
