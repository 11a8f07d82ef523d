"""What `load` makes of folders that transformers writes, besides numbers of a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.checkpoints import config_from_hf, load

from .models import CASES, make, save, torch
from .test_families import padded


def equal(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("case", ["falcon, new, biases", "llama, biases, tied"])
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


def test_shards_of_an_index(mesh_of: Any, tmp_path: Path) -> None:
    model, mesh = make(*CASES["llama"]), mesh_of((2, 4, 1), "xyz")
    save(model, tmp_path / "one")
    save(model, tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    equal(load(tmp_path / "many", mesh), load(tmp_path / "one", mesh))


def test_bfloat16_is_read_as_it_is(mesh_of: Any, tmp_path: Path) -> None:
    model = make(*CASES["llama"]).to(torch.bfloat16)
    save(model, tmp_path)
    params = load(tmp_path, mesh_of((2, 2, 2), "xyz"))
    found = np.asarray(params["blocks"]["w_q"][1].astype(jnp.float32))
    wanted = model.model.layers[1].self_attn.q_proj.weight.float().detach().numpy().T
    assert params["blocks"]["w_q"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, wanted)
