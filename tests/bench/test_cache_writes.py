"""Writing a token into a cache, compiled for TPUs: in place, also as int8."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.replay.simulation import replay
from layouts.layers.kv_cache import append
from layouts.models.cache import Entries

pytestmark = pytest.mark.tpu

LAYERS, POSITIONS, D = 32, 2048, 256
SLICES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2"}


@functools.cache
def seconds(chip: str, batch: int) -> float:
    slice_ = target(SLICES[chip])
    mesh = slice_.mesh([len(slice_.devices)], ("a",))

    # A shape stands for an array in what is lowered.
    def placed(shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def entries(positions: int) -> Entries:
        shape = (LAYERS, batch, 1, positions, D)
        scale = placed(shape[:-1], jnp.float32)
        return Entries(placed(shape, jnp.int8), scale)

    places = placed((batch,), jnp.int32)
    lowered = jax.jit(append, donate_argnums=0).lower(
        entries(POSITIONS), entries(1), places, places
    )
    return replay(lowered.compile(), mesh).total_seconds


# Sequences one by one, and in a loop.
@pytest.mark.parametrize("batch", [1, 8, 32])
@pytest.mark.parametrize("chip", SLICES)
def test_a_cache_of_int8_is_not_copied(chip: str, batch: int) -> None:
    where = target(SLICES[chip]).chip
    assert where is not None
    copied = 2 * LAYERS * batch * POSITIONS * D / where.hbm_bandwidth
    assert seconds(chip, batch) < copied
