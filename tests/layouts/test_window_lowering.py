"""Decode steps of layers with and without windows, compiled for TPU v4: caches of two sizes, each
written in place."""

from __future__ import annotations

import dataclasses

import pytest

import layouts
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from layouts.models.config import AttentionKind

from .test_lowering import BATCH, CONTEXT, SMALL, slice_of_8

WINDOW = 512
# Layers 0, 2 and 4 have the window.
CONFIG = dataclasses.replace(
    SMALL, layers=5, attention_kinds=(AttentionKind(window=WINDOW), AttentionKind())
)


@pytest.mark.tpu
@pytest.mark.slow
@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("int8_cache", [False, True])
def test_caches_are_written_in_place(int8_cache: bool, unrolled: bool) -> None:
    compiled = layouts.lower_decode_step(
        CONFIG,
        slice_of_8(),
        batch=BATCH,
        context=CONTEXT,
        int8_cache=int8_cache,
        unrolled=unrolled,
    ).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    position = 2 * (BATCH // 8) * CONFIG.d_head * (1 if int8_cache else 2)
    cache = (3 * WINDOW + 2 * CONTEXT) * position
    # What comes in is what goes out: the donated buffers, with scales and padding.
    assert cache <= memory.alias_size_in_bytes < 1.1 * cache
    assert memory.temp_size_in_bytes < cache / 2
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
        if {WINDOW, CONTEXT} & set(leaf.dims) and CONFIG.d_head in leaf.dims
        if leaf.bytes >= WINDOW * position / 2
    ]
    assert not made
