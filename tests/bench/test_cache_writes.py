"""Writing a token into a cache and reading it, compiled for TPUs: in place, also as int8."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike

import layouts
from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from collective_einsum.ruler.replay.simulation import replay
from layouts.layers.kv_cache import append
from layouts.models.cache import Entries
from layouts.models.named_models import TINY_GROUPED

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


# Every chip reads both heads of keys and values.
CONFIG = dataclasses.replace(
    TINY_GROUPED, layers=4, d_model=1024, d_ff=2048, heads=8, kv_heads=2, d_head=128, vocab=1024
)


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_an_unrolled_step_reads_a_layer_of_the_cache_in_place(batch: int) -> None:
    """Nothing is as large as the keys of one layer but the stack: no slice of it, and no copy."""
    mesh = target(SLICES["v5e"]).mesh((1, 1, 4), ("x", "y", "z"))
    lowered = layouts.lower_decode_step(
        CONFIG,
        mesh,
        batch=batch,
        context=POSITIONS,
        weights="int8",
        int8_cache=True,
        unrolled=True,
        plan="WS 2D all-reduce, heads",
        schedule="blocking",
    )
    module = hlo.parse(lowered.compile().as_text() or "")
    layer = batch * CONFIG.kv_heads * POSITIONS * CONFIG.d_head
    moved = {
        one.name: one.opcode
        for one in module.entry
        if one.opcode in ("slice", "dynamic-slice", "copy", "transpose", "reshape")
        and sum(leaf.bytes for leaf in shapes.leaves(one.shape)) >= layer
    }
    assert not moved
