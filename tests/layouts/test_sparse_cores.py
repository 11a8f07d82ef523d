"""Layers on TPU7x, whose SparseCores run lax's collectives beside other work."""

import dataclasses

import pytest

import collective_einsum as ce
import layouts
from bench.decoder_suite.layers import mesh_of
from bench.decoder_suite.phases import Phase
from layouts.cost import cost
from layouts.cost.layer_items import Load

LAYERS = [
    # Feedforward layout, sequences, and microseconds of one layer as replayed: half of what decode
    # steps of four and of two layers differ by, PaLM 540B on tpu7x:4x4x4 in bf16, all "blocking",
    # libtpu 0.0.50.1 under the options of `ce.jit`. With all 118 layers, one takes within 3% of it
    # (`python -m bench layers --target tpu7x:4x4x4 --phase decode --compiler_options chip`).
    ("WS 2D all-reduce", 64, 131.9),
    ("WS 2D", 64, 141.9),
    ("WS 2D batch", 64, 140.2),
    ("WS 2D batch", 256, 157.9),
]


@pytest.mark.tpu
@pytest.mark.parametrize(("layout", "batch"), [row[:2] for row in LAYERS])
def test_few_tokens_leave_collectives_to_sparse_cores(layout: str, batch: int) -> None:
    mesh = mesh_of("tpu7x:4x4x4")
    chosen = Phase("palm-540b", "decode", batch, 2048, "bf16", layout, "batch xyz", layers=2)
    # Rings and all-to-alls were 10% to 17% slower here, with what XLA overlaps by itself.
    lowered = [
        dataclasses.replace(chosen, schedule=schedule).lower(mesh).as_text()
        for schedule in ("auto", "blocking")
    ]
    assert lowered[0] == lowered[1]


@pytest.mark.parametrize(("layout", "batch", "replayed"), LAYERS)
def test_the_planner_counts_what_sparse_cores_overlap(
    layout: str, batch: int, replayed: float
) -> None:
    load, plan, sides = Load(batch, 1, 2048), f"{layout}, batch xyz", (4, 4, 8)
    overlapped, alone = (
        cost("palm-540b", plan, sides, load, ce.TPU_7X, overlap).seconds
        for overlap in ("auto", "none")
    )
    assert overlapped < alone
    layers = layouts.PALM_540B.layers
    assert overlapped / layers * 1e6 == pytest.approx(replayed, rel=0.15)
