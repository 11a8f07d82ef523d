"""Loading of a folder of safetensors, written here: every number where it belongs, and no more is read.

`tests/oracle` has models of every family, against transformers.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.checkpoints import (
    FAMILIES,
    ConfigFields,
    Family,
    PositionTable,
    Untransposed,
    common_fields,
    load,
    read_params,
    rotary_of,
)
from layouts.checkpoints.safetensors_files import SafetensorsFiles
from layouts.models.params import quantize

from .checkpoint_files import MODULES, tensors, write, write_parts

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, tensors())
    return tmp_path


def equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def padded(folder: Path) -> layouts.ModelConfig:
    return dataclasses.replace(layouts.config_from_hf(folder), padded_heads=8, padded_vocab=72)


def test_every_number_is_where_it_belongs(mesh_of: Any, folder: Path) -> None:
    config = padded(folder)
    mesh, stored = mesh_of((2, 2, 2), "xyz"), tensors()
    params = load(folder, mesh, config=config, dtype=jnp.float32)
    specs = layouts.param_specs(config, mesh, params)
    placed = jax.tree.map(lambda x: x.sharding, params)
    assert placed == layouts.shardings(mesh, specs)
    blocks = params["blocks"]
    q = np.asarray(blocks["w_q"][1]).reshape(32, 2, 4, 8)
    rows = stored[Q].reshape(2, 2, 8, 32)
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


def test_parts_and_unrolled_layers(mesh_of: Any, folder: Path, tmp_path: Path) -> None:
    mesh, parts = mesh_of((2, 4, 1), "xyz"), tmp_path / "parts"
    parts.mkdir()
    write_parts(parts, tensors())
    plain = load(folder, mesh)
    equal(load(parts, mesh), plain)
    equal(load(parts, mesh, unrolled=True), layouts.unroll(plain))


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_int8_is_what_quantize_makes(
    mesh_of: Any, folder: Path, unrolled: bool, dtype: Any
) -> None:
    mesh, config = mesh_of((2, 2, 2), "xyz"), padded(folder)
    options: Any = {"config": config, "dtype": dtype, "unrolled": unrolled}
    plain = load(folder, mesh, **options)
    specs = layouts.param_specs(config, mesh, jax.eval_shape(quantize, plain))
    wanted = jax.device_put(jax.jit(quantize)(plain), layouts.shardings(mesh, specs))
    equal(load(folder, mesh, weights="int8", **options), wanted)


@pytest.mark.parametrize("weights", ["plain", "int8"])
def test_chunks(mesh_of: Any, folder: Path, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of several chunks, the last of which is shorter."""
    mesh: Any = mesh_of((2, 2, 2), "xyz")
    options: Any = {"config": padded(folder), "dtype": jnp.float32, "weights": weights}
    whole = load(folder, mesh, **options)
    monkeypatch.setattr(read_params, "CHUNK_BYTES", 5 * 8 * 4)
    equal(load(folder, mesh, **options), whole)


def test_norms_of_their_own_dtype(mesh_of: Any, folder: Path) -> None:
    mesh, stored = mesh_of((2, 2, 2), "xyz"), tensors()
    params = load(folder, mesh, norm_dtype=jnp.float32)
    assert params["embedding"].dtype == params["blocks"]["w_q"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(params["final_norm"]["scale"], stored["model.norm.weight"])
    norm = params["blocks"]["norm"]["scale"][1]
    np.testing.assert_array_equal(norm, stored["model.layers.1.input_layernorm.weight"])
    with pytest.raises(ValueError, match=r"norm_dtype='float16' must be bfloat16, as dtype, or"):
        load(folder, mesh, norm_dtype="float16")


def test_bfloat16_files(mesh_of: Any, tmp_path: Path) -> None:
    mesh = mesh_of((1, 1, 1), "xyz")
    write(tmp_path, {name: x.astype(jnp.bfloat16) for name, x in tensors().items()})
    params = load(tmp_path, mesh)
    wanted = tensors()["model.layers.0.mlp.up_proj.weight"].T.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(params["blocks"]["w_in"][0]), wanted)


def test_a_shard_reads_its_own_bytes(
    mesh_of: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, int] = {}
    read = SafetensorsFiles.read

    def counted(self: Any, name: str, index: Any) -> np.ndarray:
        x = read(self, name, index)
        sizes[name] = sizes.get(name, 0) + x.size
        return x

    monkeypatch.setattr(SafetensorsFiles, "read", counted)
    load(folder, mesh_of((2, 2, 2), "xyz"))
    # Each of 8 shards its own; keys and values are sharded over x and one other axis, tables whole.
    assert sizes[Q] == 32 * 32
    assert sizes["model.layers.0.mlp.down_proj.weight"] == 32 * 48
    assert sizes["model.embed_tokens.weight"] == 67 * 32


def test_buffers_and_a_tied_unembedding_are_ignored(mesh_of: Any, tmp_path: Path) -> None:
    mesh, stored = mesh_of((2, 2, 2), "xyz"), tensors()
    table = stored.pop("lm_head.weight")
    write(tmp_path, stored, tie_word_embeddings=True)
    plain = load(tmp_path, mesh)
    stored["lm_head.weight"] = table
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    write(tmp_path, stored, tie_word_embeddings=True)
    equal(load(tmp_path, mesh), plain)


def test_progress_names_each_parameter(
    mesh_of: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(folder, mesh_of((2, 2, 2), "xyz"), progress=True)
    assert "reading blocks/w_q\n" in capsys.readouterr().err


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
    mesh = mesh_of((2, 2, 2), "xyz")
    plain = load(folder, mesh)
    write(folder, tensors(), model_type="mine")

    def config(fields: Any) -> layouts.ModelConfig:
        common = common_fields(fields)
        return layouts.ModelConfig(**common, rotary=rotary_of(fields, common["d_head"]))

    mine = Family(("mine",), config, MODULES)
    equal(load(folder, mesh, family=mine), plain)
    less = {name: module for name, module in MODULES.items() if name != "gate"}
    with pytest.raises(ValueError, match="needs a module for 'gate', but the family names only"):
        load(folder, mesh, family=Family(("mine",), config, less))
