"""What the model counts is what compiled programs do: bytes sent, and flops."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import pytest

import layouts
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import trip_counts as scalars
from collective_einsum.ruler.hlo.traffic import sent_bytes
from layouts.cost.layer_items import Attention, Einsum
from layouts.cost.layer_work import layer_work
from layouts.cost.step_cost import transfers
from layouts.cost.workload import load
from layouts.models.config import ModelConfig
from layouts.models.named_models import PALM_540B
from layouts.planning.search import ATTENTIONS, FEEDFORWARDS

pytestmark = pytest.mark.slow

# The CPU compiler widens bf16 to 32 bits, on the links too.
WIDER = 2
PARALLEL = dataclasses.replace(
    PALM_540B, layers=4, d_model=1024, d_ff=4096, heads=12, padded_heads=16, vocab=4096, d_head=64
)
SERIAL = dataclasses.replace(PARALLEL, block="serial", kv_heads=12, gated=False)
BATCH = 16
LENGTHS = {"decode": 32, "prefill": 8}
BY_POSITION = "WS 2D position"
PAIRS = [(f, a) for f in FEEDFORWARDS for a in ATTENTIONS]
# Every second pair, those of a chessboard, under one of these in turn, so that each layout of either
# kind meets half of the others.
SETTINGS = [(c, k) for c in (PARALLEL, SERIAL) for k in LENGTHS]
CASES = [
    (*pair, *SETTINGS[(i // 2) % len(SETTINGS)])
    for i, pair in enumerate(PAIRS)
    if (i + i // len(ATTENTIONS)) % 2 == 0 and pair[0] != BY_POSITION
]
CASES += [(BY_POSITION, "heads", config, "prefill") for config in (PARALLEL, SERIAL)]


@functools.cache
def program(config: ModelConfig, kind: str, feedforward: str, attention: str, layers: int) -> str:
    mesh = jax.make_mesh((2, 2, 2), ("x", "y", "z"))
    plan = layouts.Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
    config = dataclasses.replace(config, layers=layers)
    how: dict[str, Any] = {"batch": BATCH, "plan": plan, "schedule": "blocking"}
    if kind == "decode":
        lowered = layouts.lower_decode_step(config, mesh, context=LENGTHS[kind], **how)
    else:
        lowered = layouts.lower_prefill(config, mesh, length=LENGTHS[kind], **how)
    return lowered.compile().as_text() or ""


def items(config: ModelConfig, kind: str, feedforward: str, attention: str) -> Any:
    plan = layouts.Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
    size = LENGTHS[kind]
    asked = load(kind, batch=BATCH, context=size, length=size)
    return layer_work(config, plan, {"x": 2, "y": 2, "z": 2}, asked)


def dot_flops(module: hlo.Module, computation: hlo.Computation) -> float:
    """Of the dots of a computation, loops as often as they run."""
    total = 0.0
    for instruction in computation:
        if instruction.opcode == "while":
            count = scalars.trip_count(module, instruction, computation) or 1
            total += count * dot_flops(module, module.computations[instruction.called("body")])
        elif instruction.opcode in ("call", "fusion", "conditional"):
            total += dot_flops(module, module.computations[instruction.calls[0]])
        elif instruction.opcode == "dot":
            total += work.flops(module, computation, instruction)
    return total


@pytest.mark.parametrize(
    ("feedforward", "attention", "config", "kind"),
    CASES,
    ids=lambda value: value.block if isinstance(value, ModelConfig) else str(value),
)
def test_bytes_sent(feedforward: str, attention: str, config: ModelConfig, kind: str) -> None:
    """One layer more sends what `layer_work` says; the norm's few sums are a thousandth of it."""
    what = (config, kind, feedforward, attention)
    sent = (sent_bytes(program(*what, 3)) - sent_bytes(program(*what, 1))) / 2
    counted = sum(each.sent_bytes for each in transfers(items(*what)))
    assert sent == pytest.approx(WIDER * counted, rel=4e-3)


@pytest.mark.parametrize("feedforward", FEEDFORWARDS)
def test_flops(feedforward: str) -> None:
    attention = "heads" if feedforward == BY_POSITION else "batch xyz"
    what = (PARALLEL, "prefill", feedforward, attention)

    def flops(layers: int) -> float:
        module = hlo.parse(program(*what, layers))
        return dot_flops(module, module.entry)

    counted = items(*what)
    matmuls = sum(item.flops for item in counted if isinstance(item, Einsum))
    (scores,) = (item for item in counted if isinstance(item, Attention))
    # A short prompt's scores are computed whole, masked ones too.
    whole = scores.flops * scores.queries / ((scores.queries + 1) / 2)
    assert (flops(3) - flops(1)) / 2 == pytest.approx(matmuls + whole, rel=1e-2)
