"""Where a parallel block's feedforward waits for attention."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import layouts
from collective_einsum import ruler
from layouts.decoding import decoder
from layouts.planning import schedule_layers

# Of the table beside `tuning.CHAIN_TO_ATTENTION`, the rows nearest to it on either side: model, slice,
# mesh, sequences, weights, and whether a replay of the step is faster if it waits.
ROWS = [
    ("palm-540b", "v4:4x4x8", (4, 4, 8), 64, "int8", "WS 2D all-reduce, batch z", False),
    ("palm-540b", "v4:4x4x4", (4, 4, 4), 512, "bf16", "WS 2D batch, batch xyz", True),
    ("palm-62b", "v5e:4x4", (4, 4, 1), 128, "bf16", "WS 2D batch, batch xyz", False),
    ("palm-62b", "v5e:4x4", (4, 4, 1), 256, "bf16", "WS 2D batch, batch xyz", True),
]


@pytest.mark.tpu
@pytest.mark.parametrize(("model", "slice_", "shape", "batch", "weights", "plan", "waits"), ROWS)
def test_it_waits_where_replays_are_faster(
    model: str,
    slice_: str,
    shape: tuple[int, int, int],
    batch: int,
    weights: str,
    plan: str,
    waits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decide, decided = schedule_layers.block_schedules, []

    def noted(*given: Any) -> Any:
        decided.append(decide(*given))
        return decided[-1]

    monkeypatch.setattr(decoder, "block_schedules", noted)
    decoder.extender.cache_clear()
    config = dataclasses.replace(layouts.padded_for(model, shape), layers=2)
    mesh = ruler.mesh(slice_, dict(zip("xyz", shape, strict=True)))
    layouts.lower_decode_step(config, mesh, batch=batch, context=2048, weights=weights, plan=plan)
    assert decided
    assert {made.feedforward_last for made in decided} == {waits}
