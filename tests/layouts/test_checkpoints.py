"""Loading of a folder of safetensors, written here: what is read, and what is refused in words.

`tests/oracle` has models of every family, against transformers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import layouts
from layouts.checkpoints import (
    FAMILIES,
    ConfigFields,
    Family,
    PositionTable,
    Untransposed,
    load,
)
from layouts.models.params import quantize

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


def tensors() -> dict[str, np.ndarray]:
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


def write(folder: Path, stored: dict[str, np.ndarray], **fields: Any) -> None:
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    save_file(stored, folder / "model.safetensors")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, tensors())
    return tmp_path


def test_every_number_is_where_it_belongs(mesh_of: Any, folder: Path) -> None:
    config = layouts.config_from_hf(folder)
    padded = dataclasses.replace(config, padded_heads=8, padded_vocab=72)
    mesh, stored = mesh_of((2, 2, 2), "xyz"), tensors()
    params = load(folder, mesh, config=padded, dtype=jnp.float32)
    specs = layouts.param_specs(padded, mesh, params)
    placed = jax.tree.map(lambda x: x.sharding, params)
    assert placed == layouts.shardings(mesh, specs)
    blocks = params["blocks"]
    q = np.asarray(blocks["w_q"][1]).reshape(32, 2, 4, 8)
    rows = stored["model.layers.1.self_attn.q_proj.weight"].reshape(2, 2, 8, 32)
    np.testing.assert_array_equal(q[:, :, :2], rows.transpose(3, 0, 1, 2))
    assert not q[:, :, 2:].any()
    kv = np.asarray(blocks["w_kv"][0]).reshape(32, 2, 2, 8)
    for place, name in enumerate(("k", "v")):
        rows = stored[f"model.layers.0.self_attn.{name}_proj.weight"].reshape(2, 8, 32)
        np.testing.assert_array_equal(kv[:, :, place], rows.transpose(2, 0, 1))
    np.testing.assert_array_equal(
        blocks["w_out"][1], stored["model.layers.1.mlp.down_proj.weight"].T
    )
    np.testing.assert_array_equal(params["unembedding"][:67], stored["lm_head.weight"])
    assert not np.asarray(params["unembedding"][67:]).any()


def test_parts_and_their_index(mesh_of: Any, folder: Path) -> None:
    mesh, stored = mesh_of((2, 2, 2), "xyz"), tensors()
    whole = load(folder, mesh)
    (folder / "model.safetensors").unlink()
    names = list(stored)
    files = {f"model-0000{i}-of-00003.safetensors": names[i::3] for i in range(3)}
    for file, own in files.items():
        save_file({name: stored[name] for name in own}, folder / file)
    index = {name: file for file, own in files.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    parts = load(folder, mesh)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), whole, parts))
    (folder / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match="model-00001-of-00003"):
        load(folder, mesh)


@pytest.mark.parametrize("unrolled", [False, True])
def test_int8_is_what_quantize_makes(mesh_of: Any, folder: Path, unrolled: bool) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    config = dataclasses.replace(layouts.config_from_hf(folder), padded_heads=8, padded_vocab=72)
    options: Any = {"config": config, "dtype": jnp.float32, "unrolled": unrolled}
    wanted = jax.jit(quantize)(load(folder, mesh, **options))
    found = load(folder, mesh, weights="int8", **options)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(one, other)


def test_bfloat16_files(mesh_of: Any, tmp_path: Path) -> None:
    mesh = mesh_of((1, 1, 1), "xyz")
    write(tmp_path, {name: x.astype(jnp.bfloat16) for name, x in tensors().items()})
    params = load(tmp_path, mesh)
    wanted = tensors()["model.layers.0.mlp.up_proj.weight"].T.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(params["blocks"]["w_in"][0]), wanted)


def changed(change: Callable[[dict[str, np.ndarray]], None]) -> dict[str, np.ndarray]:
    stored = tensors()
    change(stored)
    return stored


UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(UP), rf"no tensor '{UP}' of shape \(48, 32\)"),
        (lambda t: t.update({UP: t[UP].T.copy()}), rf"'{UP}' has shape \(32, 48\), .*\(48, 32\)"),
        (lambda t: t.update({UP: np.ones((48, 32), np.int8)}), rf"'{UP}' has dtype I8"),
        (lambda t: t.update({"model.more.weight": t[UP]}), r"model\.more\.weight"),
    ],
    ids=["missing", "misshapen", "integers", "extra"],
)
def test_refuses_tensors(mesh_of: Any, tmp_path: Path, change: Any, message: str) -> None:
    write(tmp_path, changed(change))
    with pytest.raises(ValueError, match=message):
        load(tmp_path, mesh_of((1, 1, 1), "xyz"))


def test_refuses_a_truncated_file(mesh_of: Any, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load(folder, mesh_of((1, 1, 1), "xyz"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "lama"}, r"'lama', which is none of .*did you mean 'llama'\?"),
        ({"hidden_act": "mish"}, r"hidden_act='mish' is not supported; activations are"),
        ({"hidden_size": None}, r"lacks 'hidden_size', a positive integer"),
        (
            {"rope_scaling": {"type": "proportional", "factor": 2}},
            r"no rotary scaling of type 'proportional'",
        ),
        ({"quantization_config": {"bits": 4}}, r"quantization_config=.* is not supported"),
    ],
)
def test_refuses_a_config(tmp_path: Path, fields: Any, message: str) -> None:
    write(tmp_path, {}, **fields)
    with pytest.raises(ValueError, match=message):
        layouts.config_from_hf(tmp_path)


def test_sinks_positions_and_matrices_that_are_not_transposed(mesh_of: Any, tmp_path: Path) -> None:
    """As a family of one's own has them; and names without what they usually begin with."""
    llama = next(family for family in FAMILIES if "llama" in family.model_types)
    modules = {
        **(llama.modules if isinstance(llama.modules, dict) else {}),
        "sinks": "model.layers.{layer}.self_attn.sinks",
        "positions": PositionTable("model.positions", 2),
        "in": Untransposed("model.layers.{layer}.mlp.up_proj"),
        "out": Untransposed("model.layers.{layer}.mlp.down_proj"),
        "q": Untransposed("model.layers.{layer}.self_attn.q_proj"),
    }

    def config_of(fields: ConfigFields) -> layouts.ModelConfig:
        return dataclasses.replace(llama.config(fields), sinks=True, learned_positions=6)

    stored = tensors()
    random = np.random.default_rng(1)
    for layer in range(2):
        stored[f"model.layers.{layer}.self_attn.sinks"] = random.normal(size=4).astype(np.float32)
        for name in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"):
            key = f"model.layers.{layer}.{name}.weight"
            stored[key] = stored[key].T.copy()
    stored["model.positions.weight"] = random.normal(size=(8, 32)).astype(np.float32)
    write(tmp_path, {name.removeprefix("model."): x for name, x in stored.items()})
    own = Family(("mine",), config_of, modules, base_prefix="model.")
    config = layouts.config_from_hf(tmp_path, family=own)
    padded = dataclasses.replace(config, padded_heads=8, padded_vocab=72)
    mesh = mesh_of((2, 2, 2), "xyz")
    params = load(tmp_path, mesh, config=padded, family=own, dtype=jnp.float32)
    np.testing.assert_array_equal(params["positions"], stored["model.positions.weight"][2:])
    sinks = np.asarray(params["blocks"]["sinks"][1]).reshape(2, 4)
    np.testing.assert_array_equal(
        sinks[:, :2], stored["model.layers.1.self_attn.sinks"].reshape(2, 2)
    )
    assert not sinks[:, 2:].any()
    for name, module in (("w_in", "up_proj"), ("w_out", "down_proj")):
        wanted = stored[f"model.layers.0.mlp.{module}.weight"]
        np.testing.assert_array_equal(params["blocks"][name][0], wanted)
    plain = load(tmp_path, mesh_of((1, 1, 1), "xyz"), family=own, dtype=jnp.float32)
    wanted = stored["model.layers.0.self_attn.q_proj.weight"]
    np.testing.assert_array_equal(plain["blocks"]["w_q"][0], wanted)


def test_windows_of_layers(tmp_path: Path) -> None:
    write(tmp_path, {}, model_type="mistral", sliding_window=16)
    (kind,) = layouts.config_from_hf(tmp_path).attention_kinds
    assert kind.window == 16
    write(tmp_path, {}, model_type="mistral", sliding_window=64)
    assert layouts.config_from_hf(tmp_path).attention_kinds == ()
    types = ["sliding_attention", "chunked_attention"]
    write(tmp_path, {}, model_type="mistral", sliding_window=16, layer_types=types)
    with pytest.raises(ValueError, match=r"layer_types=.*layouts has no 'chunked_attention'"):
        layouts.config_from_hf(tmp_path)


def test_rotary_embeddings_of_an_older_gemma_3(tmp_path: Path) -> None:
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window": 8}
    old["rope_scaling"] = {"type": "linear", "factor": 8.0}
    write(tmp_path, {}, model_type="gemma3_text", num_hidden_layers=26, **old)
    config = layouts.config_from_hf(tmp_path)
    assert config.rotary == layouts.Rotary(base=1e6, scaling=layouts.LinearScaling(8.0))
    assert [config.rotary_of(kind) == config.rotary for kind in config.kinds[:6]] == [False] * 5 + [
        True
    ]
    assert config.rotary_of(config.kinds[0]) == layouts.Rotary(base=1e4)
    assert [kind.window for kind in config.kinds[:6]] == [8] * 5 + [None]


def test_a_family_of_ones_own(mesh_of: Any, folder: Path) -> None:
    llama = next(family for family in FAMILIES if "llama" in family.model_types)
    write(folder, tensors(), model_type="mine")
    own = Family(("mine",), llama.config, llama.modules)
    assert layouts.config_from_hf(folder, family=own).layers == 2
    params = load(folder, mesh_of((1, 1, 1), "xyz"), family=own)
    assert params["embedding"].shape == (67, 32)
