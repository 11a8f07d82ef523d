"""gpt-oss's checkpoints, written here: experts in one tensor, as numbers and as MXFP4."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import layouts
from layouts.checkpoints import load
from layouts.checkpoints.expert_arrays import unpacked

E, F, EXPERTS, HEADS, KV, D, VOCAB = 64, 32, 4, 4, 2, 16, 32
FIELDS = {
    "model_type": "gpt_oss",
    "hidden_size": E,
    "intermediate_size": F,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV,
    "head_dim": D,
    "vocab_size": VOCAB,
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": 2,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": False,
        "original_max_position_embeddings": 4096,
    },
}
MIXTURE = "model.layers.1.mlp.experts."


def tensors(*, packed: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCAB, E),
        "lm_head.weight": (VOCAB, E),
        "model.norm.weight": (E,),
    }
    for layer in range(2):
        own = f"model.layers.{layer}."
        for name, heads in (("q", HEADS), ("k", KV), ("v", KV)):
            shapes[f"{own}self_attn.{name}_proj.weight"] = (heads * D, E)
            shapes[f"{own}self_attn.{name}_proj.bias"] = (heads * D,)
        shapes |= {
            f"{own}self_attn.o_proj.weight": (E, HEADS * D),
            f"{own}self_attn.o_proj.bias": (E,),
            f"{own}self_attn.sinks": (HEADS,),
            f"{own}input_layernorm.weight": (E,),
            f"{own}post_attention_layernorm.weight": (E,),
            f"{own}mlp.router.weight": (EXPERTS, E),
            f"{own}mlp.router.bias": (EXPERTS,),
            f"{own}mlp.experts.gate_up_proj_bias": (EXPERTS, 2 * F),
            f"{own}mlp.experts.down_proj_bias": (EXPERTS, E),
        }
        if not packed:
            shapes[f"{own}mlp.experts.gate_up_proj"] = (EXPERTS, E, 2 * F)
            shapes[f"{own}mlp.experts.down_proj"] = (EXPERTS, F, E)
    stored: dict[str, Any] = {
        name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()
    }
    for layer in range(2 if packed else 0):
        for name, outputs, inputs in (("gate_up_proj", 2 * F, E), ("down_proj", E, F)):
            own, blocks = (
                f"model.layers.{layer}.mlp.experts.{name}",
                (EXPERTS, outputs, inputs // 32),
            )
            stored[f"{own}_blocks"] = random.integers(0, 256, (*blocks, 16), dtype=np.uint8)
            stored[f"{own}_scales"] = random.integers(120, 132, blocks, dtype=np.uint8)
    return stored


def write(folder: Path, stored: dict[str, np.ndarray], **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    save_file(stored, folder / "model.safetensors")


def number(bits: int) -> float:
    """What 4 bits stand for: a sign, two bits of exponent (bias 1), one of mantissa."""
    sign, exponent, mantissa = bits >> 3, bits >> 1 & 3, bits & 1
    size = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -size if sign else size


def matrices(stored: dict[str, np.ndarray], name: str) -> np.ndarray:
    """[experts, inputs, outputs], number by number."""
    if name in stored:
        return stored[name]
    blocks, scales = stored[f"{name}_blocks"], stored[f"{name}_scales"]
    found = np.zeros((*scales.shape[:2], 32 * scales.shape[2]))
    for place in np.ndindex(*blocks.shape):
        *row, block, byte = place
        scale = 2.0 ** (int(scales[(*row, block)]) - 127)
        for half in (0, 1):
            bits = int(blocks[place]) >> 4 * half & 15
            found[(*row, 32 * block + 2 * byte + half)] = number(bits) * scale
    return found.swapaxes(1, 2)


@pytest.mark.parametrize("packed", [False, True], ids=["numbers", "mxfp4"])
def test_every_number_is_where_it_belongs(mesh_of: Any, tmp_path: Path, packed: bool) -> None:
    stored = tensors(packed=packed)
    more = {"quantization_config": {"quant_method": "mxfp4"}} if packed else {}
    write(tmp_path, stored, **more)
    config = layouts.config_from_hf(tmp_path)
    assert config.gate_clamp == layouts.GateClamp()
    assert config.experts == layouts.Experts(EXPERTS, 2, router_bias=True)
    both, down = (matrices(stored, MIXTURE + name) for name in ("gate_up_proj", "down_proj"))
    biases = stored[MIXTURE + "gate_up_proj_bias"]
    for shape in ((2, 2, 2), (1, 1, 8)):
        mesh = mesh_of(shape, "xyz")
        padded = layouts.padded_for(config, mesh)
        blocks = load(tmp_path, mesh, config=padded, dtype=jnp.float32, unrolled=True)["blocks"][1]
        for name, first in (("gate", 0), ("in", 1)):
            wanted = np.concatenate([both[i][:, first::2] for i in range(EXPERTS)], axis=1)
            np.testing.assert_array_equal(blocks[f"w_{name}"], wanted)
            np.testing.assert_array_equal(blocks[f"b_{name}"], biases[:, first::2].reshape(-1))
        np.testing.assert_array_equal(blocks["w_out"], down.reshape(EXPERTS * F, E))
        np.testing.assert_array_equal(blocks["b_out"], stored[MIXTURE + "down_proj_bias"])


def test_mxfp4_is_refused_where_it_does_not_fit(mesh_of: Any, tmp_path: Path) -> None:
    mesh = mesh_of((1, 1, 1), "xyz")
    stored = tensors(packed=True)
    name = f"{MIXTURE}down_proj_scales"
    stored[name] = stored[name].astype(np.float32)
    write(tmp_path, stored, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(ValueError, match=f"'{name}' has dtype F32, but MXFP4 is stored as U8"):
        load(tmp_path, mesh)
    write(tmp_path, tensors(packed=False), quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match=r"quantization_config=.* no weights that are stored"):
        load(tmp_path, mesh)


def test_the_16_numbers() -> None:
    blocks = np.arange(16, dtype=np.uint8)[None, None] * 17
    found = unpacked(blocks, np.full((1, 1), 128, np.uint8))
    np.testing.assert_array_equal(found[0], np.repeat([2 * number(bits) for bits in range(16)], 2))
