"""Checkpoints of experts, written here: where each number goes, and what is refused in words.

`tests/oracle` has models of these families, against transformers.
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
from layouts import Experts
from layouts.checkpoints import FAMILIES, load
from layouts.models.params import quantize

from .checkpoint_files import tensors, write

EXPERTS = {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}
QWEN3 = {
    "model_type": "qwen3_moe",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 12,
}


def mixtral() -> dict[str, np.ndarray]:
    stored = {name: x for name, x in tensors().items() if ".mlp." not in name}
    random = np.random.default_rng(1)
    for layer in range(2):
        mixture = f"model.layers.{layer}.block_sparse_moe."
        shapes = {mixture + "gate": (4, 32)}
        for i in range(4):
            expert = f"{mixture}experts.{i}."
            shapes |= {expert + "w1": (48, 32), expert + "w3": (48, 32), expert + "w2": (32, 48)}
        for name, shape in shapes.items():
            stored[f"{name}.weight"] = random.normal(size=shape).astype(np.float32)
    return stored


@pytest.mark.parametrize("unrolled", [False, True], ids=["stacked", "unrolled"])
def test_every_expert_is_where_it_belongs(mesh_of: Any, tmp_path: Path, unrolled: bool) -> None:
    stored = mixtral()
    write(tmp_path, stored, **EXPERTS)
    config = layouts.config_from_hf(tmp_path)
    assert config.experts == Experts(4, 2)
    params = load(tmp_path, mesh_of((2, 2, 2), "xyz"), dtype=jnp.float32, unrolled=unrolled)
    blocks = params["blocks"][1] if unrolled else jax.tree.map(lambda x: x[1], params["blocks"])
    mixture = "model.layers.1.block_sparse_moe."
    np.testing.assert_array_equal(blocks["w_router"], stored[mixture + "gate.weight"].T)
    for i in range(4):
        own = slice(48 * i, 48 * (i + 1))
        for name, module in (("w_in", "w3"), ("w_gate", "w1")):
            wanted = stored[f"{mixture}experts.{i}.{module}.weight"].T
            np.testing.assert_array_equal(blocks[name][:, own], wanted)
        wanted = stored[f"{mixture}experts.{i}.w2.weight"].T
        np.testing.assert_array_equal(blocks["w_out"][own], wanted)


def test_int8_is_what_quantize_makes(mesh_of: Any, tmp_path: Path) -> None:
    write(tmp_path, mixtral(), **EXPERTS)
    mesh = mesh_of((2, 2, 2), "xyz")
    plain = load(tmp_path, mesh, dtype=jnp.float32)
    found = load(tmp_path, mesh, dtype=jnp.float32, weights="int8")
    assert found["blocks"]["w_router"].dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, found, quantize(plain))


def test_an_expert_that_is_missing_is_named(mesh_of: Any, tmp_path: Path) -> None:
    stored = mixtral()
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    del stored[name]
    write(tmp_path, stored, **EXPERTS)
    with pytest.raises(ValueError, match=f"no tensor '{name}' of shape \\(32, 48\\)"):
        load(tmp_path, mesh_of((1, 1, 1), "xyz"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"mlp_only_layers": [0]},
            r"mlp_only_layers=\[0\] is not supported: layouts has no layers",
        ),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step=2 is not supported"),
        ({"num_experts_per_tok": 5}, "per_token=5 is more than count=4"),
        ({"norm_topk_prob": 1}, "norm_topk_prob=1 must be true or false"),
    ],
    ids=str,
)
def test_fields_that_are_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    write(tmp_path, {}, **(QWEN3 | fields))
    with pytest.raises(ValueError, match=words):
        layouts.config_from_hf(tmp_path)


def test_probabilities_of_qwen3(tmp_path: Path) -> None:
    for chosen in (True, False):
        write(tmp_path, {}, **QWEN3, norm_topk_prob=chosen, mlp_only_layers=[])
        config = layouts.config_from_hf(tmp_path)
        wanted = Experts(4, 2, probabilities="chosen" if chosen else "all")
        assert (config.d_ff, config.experts) == (12, wanted)


def test_a_family_that_names_one_module_for_all_experts_is_refused(
    mesh_of: Any, tmp_path: Path
) -> None:
    write(tmp_path, mixtral(), **EXPERTS)
    known = next(family for family in FAMILIES if family.model_types == ("mixtral",))
    assert not callable(known.modules)
    mine = dataclasses.replace(known, modules={**known.modules, "in": "model.layers.{layer}.mlp"})
    with pytest.raises(ValueError, match=r'no source of the experts\' \'in\'.*"{expert}" in it'):
        load(tmp_path, mesh_of((1, 1, 1), "xyz"), family=mine)
