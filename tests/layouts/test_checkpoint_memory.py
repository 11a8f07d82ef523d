"""The host memory that loading takes; `large_checkpoint` measures it of a checkpoint of 8 GB."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import pytest

from layouts.checkpoints import load, read_params

from .large_checkpoint import write

SIZES = {
    "hidden_size": 512,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 8192,
}


def shard_bytes(x: jax.Array) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


@pytest.mark.parametrize("unrolled", [False, True])
def test_less_than_three_shards(
    mesh_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unrolled: bool
) -> None:
    """tracemalloc counts numpy's arrays, which the host holds, and not those that jax makes."""
    mesh: Any = mesh_of((2, 2, 2), "xyz")
    write(tmp_path, SIZES, 3)
    # Chunks are written into arrays that jax has made; a whole shard might be lent to it by numpy.
    monkeypatch.setattr(read_params, "CHUNK_BYTES", 2**16)
    # What is compiled is compiled here.
    params = load(tmp_path, mesh, unrolled=unrolled)
    largest = shard_bytes(params["embedding"])
    stacked = load(tmp_path, mesh)["blocks"]["w_in"] if unrolled else params["blocks"]["w_in"]
    del params
    # All layers of a matrix would be seen.
    assert shard_bytes(stacked) > 1.5 * 3 * largest
    tracemalloc.start()
    try:
        params = load(tmp_path, mesh, unrolled=unrolled)
        left, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What is left are Python's objects of many small arrays.
    assert len(jax.tree.leaves(params)) > 10
    assert peak - left < 3 * largest
