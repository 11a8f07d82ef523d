"""Decode steps of layers with and without windows, compiled for TPU v4: caches of two sizes, each
written in place."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import pytest

import layouts
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from layouts.models.config import AttentionKind

from .test_lowering import BATCH, CONTEXT, SMALL, slice_of_8

WINDOW = 512
# Small arrays are brought into on-chip memory beforehand.
PREFETCHES = ("copy-start", "copy-done", "slice-start", "slice-done")
# Layers 0, 2 and 4 have the window.
CONFIG = dataclasses.replace(
    SMALL, layers=5, attention_kinds=(AttentionKind(window=WINDOW), AttentionKind())
)


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_caches_are_written_in_place(int8_cache: bool, unrolled: bool) -> None:
    def step(context: int) -> jax.stages.Compiled:
        return layouts.lower_decode_step(
            CONFIG,
            slice_of_8(),
            batch=BATCH,
            context=context,
            int8_cache=int8_cache,
            unrolled=unrolled,
        ).compile()

    def memory(compiled: jax.stages.Compiled) -> Any:
        return compiled.memory_analysis()

    compiled = step(CONTEXT)
    short, long = memory(compiled), memory(step(4 * CONTEXT))
    position = 2 * (BATCH // 8) * CONFIG.d_head * (1 if int8_cache else 2)
    cache, added = (3 * WINDOW + 2 * CONTEXT) * position, 2 * 3 * CONTEXT * position
    # What comes in is what goes out: the donated buffers, with scales and padding.
    assert cache <= short.alias_size_in_bytes < 1.1 * cache
    assert added <= long.alias_size_in_bytes - short.alias_size_in_bytes < 1.1 * added
    assert long.temp_size_in_bytes - short.temp_size_in_bytes < added / 20
    # No op makes an array as large as a layer's keys, but those that update the cache.
    module = hlo.parse(compiled.as_text() or "")
    fused = {name for c in module.computations.values() for i in c for name in i.calls}
    fused -= {
        i.called("body") for c in module.computations.values() for i in c if i.opcode == "while"
    }
    made = [
        f"{i.name}: {i.shape}"
        for name, computation in module.computations.items()
        if name not in fused
        for i in computation
        for leaf in shapes.leaves(i.shape)
        if not work.is_free(i) and "dynamic-update-slice" not in i.name + i.opcode
        if i.opcode != "while" and i.name.partition(".")[0] not in PREFETCHES
        if {WINDOW, CONTEXT} & set(leaf.dims) and CONFIG.d_head in leaf.dims
        if leaf.bytes >= WINDOW * position / 2
    ]
    assert not made
