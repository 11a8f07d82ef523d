"""What `load` reads besides one whole file, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import layouts
from layouts.checkpoints import Family, common_fields, config_from_hf, load, rotary_of

from .models import CASES, make, save, torch
from .test_families import padded

Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A Llama of 2 layers in one file."""
    save(make(*CASES["llama"]), tmp_path)
    return tmp_path


def equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edits the tensors of the only file."""
    path = folder / "model.safetensors"
    tensors = dict(safetensors_numpy.load_file(path))
    edit(tensors)
    safetensors_numpy.save_file(tensors, path)


def change_config(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize("case", ["llama", "falcon, new, biases", "llama, biases, tied"])
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_int8_is_quantize_of_the_same(
    mesh_of: Any, tmp_path: Path, case: str, unrolled: bool, dtype: Any
) -> None:
    save(make(*CASES[case]), tmp_path)
    mesh, config = mesh_of((2, 2, 2), "xyz"), padded(config_from_hf(tmp_path))
    options: dict[str, Any] = {"config": config, "dtype": dtype, "unrolled": unrolled}
    plain = load(tmp_path, mesh, **options)
    specs = layouts.param_specs(config, mesh, jax.eval_shape(layouts.quantize, plain))
    wanted = jax.device_put(layouts.quantize(plain), layouts.shardings(mesh, specs))
    equal(load(tmp_path, mesh, weights="int8", **options), wanted)


def test_shards_of_an_index_and_unrolled_layers(mesh_of: Any, tmp_path: Path) -> None:
    model, mesh = make(*CASES["llama"]), mesh_of((2, 4, 1), "xyz")
    save(model, tmp_path / "one")
    save(model, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    plain = load(tmp_path / "one", mesh)
    equal(load(tmp_path / "many", mesh), plain)
    layers = load(tmp_path / "many", mesh, unrolled=True)
    equal(layers, layouts.unroll(plain))


def test_bfloat16_is_read_as_it_is(mesh_of: Any, tmp_path: Path) -> None:
    model = make(*CASES["llama"]).to(torch.bfloat16)
    save(model, tmp_path)
    params = load(tmp_path, mesh_of((2, 2, 2), "xyz"))
    found = np.asarray(params["blocks"]["w_q"][1].astype(jnp.float32))
    wanted = model.model.layers[1].self_attn.q_proj.weight.float().detach().numpy().T
    assert params["blocks"]["w_q"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wanted)


def test_a_shard_reads_its_own_bytes(
    mesh_of: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from layouts.checkpoints.tensor_files import TensorFiles

    sizes: dict[str, int] = {}
    read = TensorFiles.read

    def counted(self: Any, name: str, index: Any) -> np.ndarray:
        x = read(self, name, index)
        sizes[name] = sizes.get(name, 0) + x.size
        return x

    monkeypatch.setattr(TensorFiles, "read", counted)
    load(folder, mesh_of((2, 2, 2), "xyz"))
    # Each of 8 shards its own; keys and values are sharded over x and one other axis, tables whole.
    assert sizes[Q] == 32 * 32
    assert sizes["model.layers.0.mlp.down_proj.weight"] == 32 * 48
    assert sizes["model.embed_tokens.weight"] == 67 * 32


def test_buffers_and_a_tied_unembedding_are_ignored(mesh_of: Any, tmp_path: Path) -> None:
    save(make(*CASES["llama, biases, tied"]), tmp_path)
    mesh = mesh_of((2, 2, 2), "xyz")
    plain = load(tmp_path, mesh)

    def add(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)

    change(tmp_path, add)
    equal(load(tmp_path, mesh), plain)


def renamed(tensors: dict[str, Any]) -> None:
    tensors[Q.replace("q_proj", "q_proj_")] = tensors.pop(Q)


EDITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "missing": (lambda t: t.pop(Q), "has no tensor '.*1.self_attn.q_proj.weight' of shape"),
    "renamed": (renamed, "did you mean '.*q_proj_.weight'"),
    "extra": (
        lambda t: t.update(extra=np.ones(3, np.float32)),
        "does not know.*model.safetensors: extra",
    ),
    "misshapen": (
        lambda t: t.update({Q: np.ones((32, 16), np.float32)}),
        r"model.safetensors: tensor '.*' has shape \(32, 16\).*\(32, 32\)",
    ),
    "integers": (lambda t: t.update({Q: np.ones((32, 32), np.int8)}), "has dtype I8"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_tensors_that_do_not_fit(mesh_of: Any, folder: Path, edit: str) -> None:
    change(folder, EDITS[edit][0])
    with pytest.raises(ValueError, match=EDITS[edit][1]):
        load(folder, mesh_of((2, 2, 2), "xyz"))


def test_damaged_files(mesh_of: Any, tmp_path: Path) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    save(make(*CASES["llama"]), tmp_path, max_shard_size="20KB")
    first = sorted(tmp_path.glob("*.safetensors"))[0]
    whole = first.read_bytes()
    first.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=f"{first.name} is no whole safetensors file"):
        load(tmp_path, mesh)
    first.unlink()
    with pytest.raises(ValueError, match=f"names {first.name}, but .* no such file"):
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


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "other layers": (
        {"model_type": "qwen3", "layer_types": ["linear_attention"] * 2},
        "layouts has no 'linear_attention'",
    ),
    "scaling": (
        {"rope_parameters": None, "rope_scaling": {"type": "proportional", "factor": 2.0}},
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
    "experts": ({"model_type": "mixtral"}, "'mixtral', which is none of"),
    "absent type": ({"model_type": None}, "has model_type None"),
    "quantized": (
        {"quantization_config": {"quant_method": "fp8"}},
        "quantization_config=.* no weights that are stored quantized",
    ),
    "absent size": ({"hidden_size": None}, "lacks 'hidden_size', a positive integer"),
    "size": ({"num_hidden_layers": "2"}, "num_hidden_layers='2' must be a positive integer"),
}


@pytest.mark.parametrize("fields", FIELDS)
def test_fields_that_are_refused(folder: Path, fields: str) -> None:
    change_config(folder, **FIELDS[fields][0])
    with pytest.raises(ValueError, match=FIELDS[fields][1]):
        config_from_hf(folder)


def test_windows_that_never_bite(folder: Path) -> None:
    plain = config_from_hf(folder)
    change_config(folder, model_type="mistral", sliding_window=64, max_position_embeddings=64)
    assert config_from_hf(folder) == plain
    off = {"use_sliding_window": False, "sliding_window": 4, "layer_types": None}
    change_config(folder, model_type="qwen2", **off)
    assert config_from_hf(folder).biases == ("q", "kv")


def test_older_config(folder: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 4.0}
    change_config(folder, rope_parameters={**scaling, "rope_theta": 100.0})
    newer = config_from_hf(folder)
    change_config(folder, rope_parameters=None, rope_theta=100.0, rope_scaling=scaling)
    assert config_from_hf(folder) == newer
    change_config(folder, rope_scaling={"type": "linear", "factor": 4.0}, head_dim=None)
    assert config_from_hf(folder) == newer


def test_folders_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json; give the folder"):
        config_from_hf(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        config_from_hf(tmp_path)


def test_arguments(mesh_of: Any, folder: Path) -> None:
    mesh: Any = mesh_of((2, 2, 2), "xyz")
    wrong: Any = "llama"
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"weights": "int4"}, "weights='int4' is none of"),
        ({"dtype": "int8"}, "must be a floating dtype"),
        ({"config": wrong}, "must be a ModelConfig"),
        ({"family": wrong}, "must be a layouts.checkpoints.Family"),
        ({"unrolled": 1}, "unrolled=1 must be True or False"),
    )
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            load(folder, mesh, **options)
    with pytest.raises(ValueError, match="padded_heads"):
        load(folder, mesh_of((1, 8, 1), "xyz"))


def test_progress_names_each_parameter(
    mesh_of: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load(folder, mesh_of((2, 2, 2), "xyz"), progress=True)
    assert "reading blocks/w_q\n" in capsys.readouterr().err


def test_a_family_of_ones_own(mesh_of: Any, folder: Path) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    plain = load(folder, mesh)
    change_config(folder, model_type="mine")

    def config(fields: Any) -> layouts.ModelConfig:
        common = common_fields(fields)
        return layouts.ModelConfig(**common, rotary=rotary_of(fields, common["d_head"]))

    layer = "model.layers.{layer}."
    modules = {
        "embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "unembedding": "lm_head",
        "norm": layer + "input_layernorm",
        "norm_ffn": layer + "post_attention_layernorm",
        **{name: f"{layer}self_attn.{name}_proj" for name in ("q", "k", "v", "o")},
        "in": layer + "mlp.up_proj",
        "gate": layer + "mlp.gate_proj",
        "out": layer + "mlp.down_proj",
    }
    mine = Family(("mine",), config, modules)
    equal(load(folder, mesh, family=mine), plain)
    del modules["gate"]
    with pytest.raises(ValueError, match="needs a module for 'gate', but the family names only"):
        load(folder, mesh, family=mine)
