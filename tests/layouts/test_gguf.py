"""Loading of GGUF files, written here as llama.cpp converts them, against the same safetensors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import layouts
from layouts import reference
from layouts.checkpoints import load

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 67,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
}
LAYER = {
    "self_attn.q_proj": ("attn_q", (64, 64)),
    "self_attn.k_proj": ("attn_k", (32, 64)),
    "self_attn.v_proj": ("attn_v", (32, 64)),
    "self_attn.o_proj": ("attn_output", (64, 64)),
    "mlp.up_proj": ("ffn_up", (96, 64)),
    "mlp.gate_proj": ("ffn_gate", (96, 64)),
    "mlp.down_proj": ("ffn_down", (64, 96)),
    "input_layernorm": ("attn_norm", (64,)),
    "post_attention_layernorm": ("ffn_norm", (64,)),
}
BIASES = {
    "self_attn.q_proj": ("attn_q", (64,)),
    "self_attn.k_proj": ("attn_k", (32,)),
    "self_attn.v_proj": ("attn_v", (32,)),
}
HEAD_NORMS = {
    "self_attn.q_norm": ("attn_q_norm", (16,)),
    "self_attn.k_norm": ("attn_k_norm", (16,)),
}
FUSED = {
    "self_attn.qkv_proj": ("attn_qkv", (128, 64)),
    "mlp.gate_up_proj": ("ffn_up", (192, 64)),
}
ENDS = {
    "model.embed_tokens": ("token_embd", (67, 64)),
    "lm_head": ("output", (67, 64)),
    "model.norm": ("output_norm", (64,)),
}
# Frequencies of rotary pairs are divided by these in Llama 3.1.
FACTORS = np.array([1, 1, 1, 1, 2, 4, 8, 8], np.float32)
Names = dict[str, tuple[str, tuple[int, ...]]]


def names_of(kind: str) -> Names:
    """Of each tensor of a Hugging Face folder: its name in GGUF, and its shape."""
    layer = {f"{name}.weight": (f"{own}.weight", x) for name, (own, x) in LAYER.items()}
    ends = {f"{name}.weight": (f"{own}.weight", x) for name, (own, x) in ENDS.items()}
    if kind == "qwen2":
        layer |= {f"{name}.bias": (f"{own}.bias", x) for name, (own, x) in BIASES.items()}
    if kind == "qwen3":
        layer |= {f"{name}.weight": (f"{own}.weight", x) for name, (own, x) in HEAD_NORMS.items()}
    if kind == "phi3":
        fused = {f"{name}.weight": (f"{own}.weight", x) for name, (own, x) in FUSED.items()}
        parts = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj")
        layer = {n: x for n, x in layer.items() if not any(part in n for part in parts)} | fused
    if kind == "gemma":
        del ends["lm_head.weight"]
    return ends | {
        f"model.layers.{i}.{name}": (f"blk.{i}.{own}", shape)
        for i in range(2)
        for name, (own, shape) in layer.items()
    }


def permuted(x: np.ndarray, heads: int) -> np.ndarray:
    """The rows of queries or keys in the order of llama.cpp."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def write(
    folder: Path,
    kind: str = "llama",
    *,
    types: Mapping[str, Any] | None = None,
    change: Any = lambda tensors: None,
    permutes: bool = True,
    factors: np.ndarray | None = None,
    metadata: Mapping[str, int] | None = None,
) -> Path:
    """Writes the same random model as safetensors and as folder / "gguf" / "model.gguf".

    Args:
      types: the types of tensors by the ends of their names in GGUF; float32 by default. Safetensors
        have what the quantized ones stand for.
      change: of the tensors of the GGUF.
      permutes: as llama.cpp permutes queries and keys.
      factors: of rotary frequencies.
      metadata: more of it.
    """
    random = np.random.default_rng(0)
    plain, stored = {}, {}
    for name, (own, shape) in names_of(kind).items():
        x = random.normal(size=shape).astype(np.float32) / (8 if len(shape) > 1 else 2)
        x = x + 1 if "norm" in name and kind != "gemma" else x
        y = x + 1 if "norm" in name and kind == "gemma" else x
        if kind == "llama" and permutes and ("attn_q." in own or "attn_k." in own):
            y = permuted(x, 4 if "attn_q." in own else 2)
        dtype = next((t for end, t in (types or {}).items() if own.endswith(end)), None)
        if dtype is not None:
            assert not permutes
            y = gguf.quantize(y, dtype)
            x = gguf.dequantize(y, dtype)
        plain[name], stored[own] = x, (y, dtype)
    if factors is not None:
        stored["rope_freqs.weight"] = (factors, None)
    change(stored)
    fields = SIZES | {"model_type": kind, "head_dim": 16}
    if kind == "gemma":
        fields["tie_word_embeddings"] = True
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(plain, folder / "model.safetensors")
    (folder / "gguf").mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(folder / "gguf" / "model.gguf", kind)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_feed_forward_length(96)
    writer.add_context_length(64)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500.0)
    writer.add_rope_dimension_count(16)
    for key, value in (metadata or {}).items():
        writer.add_uint32(f"{kind}.{key}", value)
    for name, (x, dtype) in stored.items():
        writer.add_tensor(name, x, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "gguf" / "model.gguf"


def logits_of(path: Path, mesh: Any, **changes: Any) -> np.ndarray:
    """The logits after six tokens, by the reference."""
    config = dataclasses.replace(layouts.config_from_hf(path), **changes)
    params = load(path, mesh, config=config, dtype=jnp.float32)
    tokens = jnp.arange(12, dtype=jnp.int32).reshape(2, 6) * 5
    logits, _ = reference.prefill(params, config, tokens, jnp.array([6, 4]), 6)
    return np.asarray(logits)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "phi3"])
def test_as_the_safetensors(mesh_of: Any, tmp_path: Path, kind: str) -> None:
    mesh, file = mesh_of((1, 1, 1), "xyz"), write(tmp_path, kind)
    wanted = logits_of(tmp_path, mesh)
    found = logits_of(file, mesh)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    # The same from the folder of the file.
    assert layouts.config_from_hf(file.parent) == layouts.config_from_hf(file)


def test_queries_and_keys_are_permuted(mesh_of: Any, tmp_path: Path) -> None:
    mesh = mesh_of((1, 1, 1), "xyz")
    found = logits_of(write(tmp_path, permutes=False), mesh)
    wanted = logits_of(tmp_path, mesh)
    assert np.abs(found - wanted).max() > 0.01 * np.abs(wanted).max()


def test_rotary_factors(mesh_of: Any, tmp_path: Path) -> None:
    mesh, file = mesh_of((1, 1, 1), "xyz"), write(tmp_path, factors=FACTORS)
    plain = layouts.config_from_hf(tmp_path).rotary
    scaling = layouts.DividedScaling(FACTORS.tolist())
    assert plain is not None
    wanted = logits_of(tmp_path, mesh, rotary=dataclasses.replace(plain, scaling=scaling))
    found = logits_of(file, mesh)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert np.abs(found - logits_of(tmp_path, mesh)).max() > 0.01 * np.abs(wanted).max()


TYPES = {
    "attn_v.weight": gguf.GGMLQuantizationType.Q8_0,
    "attn_output.weight": gguf.GGMLQuantizationType.Q4_1,
    "ffn_up.weight": gguf.GGMLQuantizationType.F16,
    "ffn_gate.weight": gguf.GGMLQuantizationType.BF16,
    "ffn_down.weight": gguf.GGMLQuantizationType.Q5_0,
    "token_embd.weight": gguf.GGMLQuantizationType.Q8_0,
}


@pytest.mark.parametrize("unrolled", [False, True])
def test_types_and_shards(mesh_of: Any, tmp_path: Path, unrolled: bool) -> None:
    """Every slice of every type is what gguf makes of the whole tensor."""
    file, mesh = write(tmp_path, types=TYPES, permutes=False), mesh_of((2, 2, 2), "xyz")
    config = dataclasses.replace(layouts.config_from_hf(file), padded_heads=8, padded_vocab=72)
    options: Any = {"config": config, "dtype": jnp.float32, "unrolled": unrolled}
    found, wanted = load(file, mesh, **options), load(tmp_path, mesh, **options)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def test_only_the_rows_of_shards_are_dequantized(
    mesh_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, types=TYPES, permutes=False)
    dequantize, counts = gguf.dequantize, []

    def counted(data: np.ndarray, kind: Any) -> np.ndarray:
        x = dequantize(data, kind)
        counts.append((kind.name, x.size))
        return x

    monkeypatch.setattr(gguf, "dequantize", counted)
    load(file, mesh_of((1, 8, 1), "xyz"), config=padded(file))
    # Of 96 inputs each of 8 devices has 12, which lie in one block of 32 or in two.
    sizes = [size for name, size in counts if name == "Q5_0" and size > 32]
    assert sorted(set(sizes)) == [64 * 32, 64 * 64]
    assert len(sizes) == 2 * 8


def padded(file: Path) -> layouts.ModelConfig:
    return dataclasses.replace(layouts.config_from_hf(file), padded_heads=8, padded_vocab=72)


def test_a_model_in_parts(mesh_of: Any, tmp_path: Path) -> None:
    file, mesh = write(tmp_path), mesh_of((1, 1, 1), "xyz")
    wanted = logits_of(file, mesh)
    reader = gguf.GGUFReader(file)
    parts = [tmp_path / "parts" / f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    parts[0].parent.mkdir()
    for number, part in enumerate(parts):
        writer = gguf.GGUFWriter(part, "llama")
        for key, field in reader.fields.items():
            if number == 0 and key.startswith("llama."):
                writer.add_key_value(key, field.contents(), field.types[0])
        for x in reader.tensors[number::2]:
            writer.add_tensor(x.name, x.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    np.testing.assert_array_equal(logits_of(parts[1], mesh), wanted)
    np.testing.assert_array_equal(logits_of(parts[0].parent, mesh), wanted)
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"one of 2 files, but there is no .*m-00002-of-00002"):
        layouts.config_from_hf(parts[0])


def rename(tensors: dict[str, Any]) -> None:
    tensors["blk.1.ffn_upp.weight"] = tensors.pop("blk.1.ffn_up.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename, r"no tensor 'blk\.1\.ffn_up\.weight' .*did you mean 'blk\.1\.ffn_upp\.weight'"),
        (
            lambda t: t.update({"blk.0.attn_q.weight": (np.ones((64, 32), np.float32), None)}),
            r"model\.gguf: tensor 'blk\.0\.attn_q\.weight' has shape \(64, 32\).*\(64, 64\)",
        ),
        (
            lambda t: t.update({"blk.0.attn_q.weight": (np.ones((64, 64), np.int8), None)}),
            r"model\.gguf: tensor 'blk\.0\.attn_q\.weight' has dtype I8",
        ),
        (
            lambda t: t.update({"blk.0.ffn_gate_inp.weight": t["blk.0.ffn_up.weight"]}),
            r"does not know.*model\.gguf: blk\.0\.ffn_gate_inp\.weight",
        ),
    ],
    ids=["missing", "misshapen", "integers", "extra"],
)
def test_refuses_tensors(mesh_of: Any, tmp_path: Path, change: Any, message: str) -> None:
    file = write(tmp_path, change=change)
    with pytest.raises(ValueError, match=message):
        load(file, mesh_of((1, 1, 1), "xyz"))


def test_refuses_files(tmp_path: Path) -> None:
    file = write(tmp_path)
    whole = file.read_bytes()
    for cut in (len(whole) - 100, 300, 0):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"model\.gguf is no whole GGUF file"):
            layouts.config_from_hf(file)
    file.write_bytes(whole)
    file.with_name("other.gguf").write_bytes(whole)
    with pytest.raises(ValueError, match=r"several models, model\.gguf, other\.gguf; give one"):
        layouts.config_from_hf(file.parent)
    with pytest.raises(ValueError, match=r"is no \.gguf file"):
        layouts.config_from_hf(tmp_path / "config.json")


def test_refuses_metadata(tmp_path: Path) -> None:
    file = write(tmp_path, metadata={"expert_count": 8})
    with pytest.raises(ValueError, match=r"llama\.expert_count=8 is not supported"):
        layouts.config_from_hf(file)
    writer = gguf.GGUFWriter(file, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general\.architecture='mamba', which is none of gemma"):
        layouts.config_from_hf(file)
    writer = gguf.GGUFWriter(file, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"metadata of model\.gguf lack llama\.embedding_length"):
        layouts.config_from_hf(file)
