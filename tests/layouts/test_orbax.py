"""Sharded parameters are saved with orbax, and restored onto another mesh."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import layouts
from layouts.checkpoints import load
from layouts.models import params_shapes

from .checkpoint_files import tensors, write


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("weights", ["plain", "int8"])
def test_restored_onto_another_mesh(
    mesh_of: Any, tmp_path: Path, weights: str, unrolled: bool
) -> None:
    write(tmp_path, tensors())
    config = dataclasses.replace(layouts.config_from_hf(tmp_path), padded_heads=8, padded_vocab=72)
    one, other = mesh_of((2, 2, 2), "xyz"), mesh_of((1, 4, 1), "xyz")
    options: Any = {"config": config, "weights": weights, "unrolled": unrolled}
    saved = load(tmp_path, one, **options)
    shapes = params_shapes(config, jnp.bfloat16, int8=weights == "int8", unrolled=unrolled)
    placed = layouts.shardings(other, layouts.param_specs(config, other, shapes))
    target = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "saved", target)
    wanted = load(tmp_path, other, **options)
    assert jax.tree.structure(restored) == jax.tree.structure(wanted)
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(wanted), strict=True):
        assert x.dtype == y.dtype
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim)
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))
