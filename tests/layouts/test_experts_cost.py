"""What the cost model makes of experts, and where the planner gives them their own tokens only."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import pytest

import layouts
from collective_einsum.chips import as_chip
from layouts import Experts
from layouts.cost.layer_cost import layer_seconds
from layouts.cost.layer_items import EXPERTS_TOKENS, Copies, Einsum, Transfer
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.models.config import ModelConfig
from layouts.models.params import params_shapes

from .test_experts import MIXTRAL, QWEN3, SHARED, SIX

# Chips along y and z have experts of their own, and no weights are gathered.
SHAPE = (1, 4, 4)


def sorts_in(predicted: Any) -> bool:
    return any(isinstance(item, Copies) for item in predicted.items)


def test_prompts_are_sorted_and_single_tokens_are_not() -> None:
    prompt = cost(MIXTRAL, "WG X, heads", SHAPE, load("prefill", batch=8, length=2048), "v5e")
    token = cost(MIXTRAL, "WG X, heads", SHAPE, load("decode", batch=16, context=2048), "v5e")
    assert sorts_in(prompt)
    assert not sorts_in(token)


def test_weights_that_are_gathered_meanwhile_decide() -> None:
    """No dot of sorted tokens overlaps the all-gathers, which pay for more tokens only."""
    few, many = (
        cost(MIXTRAL, "WG XYZ, heads", (4, 4, 1), load("prefill", batch=n, length=2048), "v5e")
        for n in (16, 256)
    )
    assert not sorts_in(few)
    assert sorts_in(many)
    gathers = [i for i in many.items if isinstance(i, Transfer) and i.name == "experts"]
    # Over x, and then over y, of three matrices.
    matrix = 2 * MIXTRAL.d_model * 8 * MIXTRAL.d_ff
    assert [gather.bytes for gather in gathers] == 3 * [matrix / 4, matrix]


def test_sorting_does_the_work_of_the_experts_that_tokens_have() -> None:
    asked = load("prefill", batch=8, length=2048)
    prompt = cost(QWEN3, "WG X, heads", SHAPE, asked, "v5p")
    used = 2 * QWEN3.active_layer_parameters * 8 * 2048 / prompt.chips
    # Attention, tiles that are not full and the router come on top.
    assert used < prompt.flops < 1.5 * used
    every = cost(QWEN3, "WS 1D, heads", (4, 2, 2), asked, "v5p")
    assert every.flops > 8 * used
    assert prompt.seconds < every.seconds
    assert prompt.mfu < 1


@pytest.mark.parametrize("feedforward", ["WS 1D", "WS 2D", "WS 2D batch", "WS 2D all-reduce"])
def test_stationary_experts_get_the_tokens_that_have_them(feedforward: str) -> None:
    """A chip has the sixteenth part of the experts' work, in tiles, with room for uneven routers."""
    experts = QWEN3.experts
    assert experts is not None
    tokens, count = 16 * 2048, experts.count // 16
    asked = load("prefill", batch=16, length=2048)
    found = cost(QWEN3, f"{feedforward}, heads", SHAPE, asked, "v5p")
    assert sorts_in(found)
    einsums = [i for i in found.items if isinstance(i, Einsum) and i.experts > 1]
    assert {i.experts for i in einsums} == {count}
    average = tokens * experts.per_token / experts.count
    assert {i.m for i in einsums} == {room(average)}
    expert = 2 * 3 * QWEN3.d_model * QWEN3.d_ff
    assert sum(i.flops for i in einsums) == count * room(average) * expert
    assert found.memory.temporaries > 2 * count * room(average) * 2 * QWEN3.d_ff
    moved = [i for i in found.items if isinstance(i, Transfer)]
    assert "experts" not in {i.name for i in moved}
    row = 2 * QWEN3.d_model
    if feedforward == "WS 2D batch":
        sent = [i for i in moved if i.name == "experts' tokens"]
        assert [i.kind for i in sent] == 2 * ["all-to-all"]
        # A chip sends to each of 16 what their experts have on average of its sixteenth of all tokens.
        assert {i.bytes for i in sent} == {16 * room(average * count / 16) * row}
        return
    ends = [i for i in moved if i.name in ("activations", "sums")]
    assert {i.bytes for i in ends[-2:]} == {tokens * row}
    assert ends[-1].kind == ("all-reduce" if feedforward.endswith("reduce") else "reduce-scatter")


def room(average: float) -> int:
    """Four standard deviations more, in tiles of 16 rows."""
    return math.ceil((average + 4 * math.sqrt(average)) / 16) * 16


@pytest.mark.parametrize(
    ("experts", "sends"), [(Experts(8, 2), True), (Experts(64, 24), False)], ids=str
)
def test_tokens_are_sent_where_few_chips_have_their_experts(experts: Experts, sends: bool) -> None:
    """To 2 of 4 chips, rather than to all; or 24 times to these, rather than once to each."""
    config = dataclasses.replace(MIXTRAL, experts=experts, d_ff=MIXTRAL.d_ff * 8 // experts.count)
    asked = load("prefill", batch=16, length=2048)
    found = cost(config, "WS 2D batch, heads", (1, 2, 2), asked, "v5p")
    names = {i.name for i in found.items if isinstance(i, Transfer)}
    assert sorts_in(found)
    assert ("experts' tokens" in names) == sends


def test_the_planner_sorts_prompts() -> None:
    found = layouts.plan(
        MIXTRAL, chip="v5e", mesh_shape=SHAPE, phase="prefill", batch=8, length=2048
    )
    assert found.best.feedforward == "WS 2D position"
    assert sorts_in(found.cost)


@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_a_feedforward_beside_the_experts_is_priced(phase: Any) -> None:
    """With collectives of its own only where experts have other ones than a feedforward."""
    width, tokens = 8192, 64 if phase == "decode" else 16 * 2048
    experts = dataclasses.replace(MIXTRAL.experts or Experts(8, 2), shared_width=width)
    asked = load(phase, batch=64 if phase == "decode" else 16, context=2048, length=2048)
    plan = "WS 2D batch, batch yz"
    beside, alone = (
        cost(dataclasses.replace(MIXTRAL, experts=given), plan, (1, 4, 4), asked, "v5e")
        for given in (experts, MIXTRAL.experts)
    )
    assert sorts_in(beside) == sorts_in(alone) == (phase == "prefill")
    added = MIXTRAL.layers * 2 * tokens * 3 * MIXTRAL.d_model * width / 16
    assert beside.flops - alone.flops == pytest.approx(added)
    read = MIXTRAL.layers * 2 * 3 * MIXTRAL.d_model * width / 16
    assert beside.weight_bytes - alone.weight_bytes == pytest.approx(read)
    assert beside.seconds > alone.seconds
    gathers, without = (
        [i.names for i in c.items if isinstance(i, Einsum) and i.gather] for c in (beside, alone)
    )
    assert len(gathers) - len(without) == (phase == "prefill")


@pytest.mark.parametrize("width", [64, 65536])
def test_all_to_alls_overlap_the_feedforward_beside_the_experts(width: int) -> None:
    """As far as its matmuls last, on a chip whose compiler makes them asynchronous."""
    config = dataclasses.replace(MIXTRAL, experts=Experts(8, 2, shared_width=width))
    sizes, chip = {"x": 1, "y": 4, "z": 4}, as_chip("v5e")
    sent = Transfer(EXPERTS_TOKENS, "all-to-all", ("y", "z"), 16, 2.0**26)
    names = ("w_shared_in", "w_shared_gate")
    dots = Einsum(names, 8192, MIXTRAL.d_model, (width // 16,) * 2, 2)
    waits = layer_seconds(MIXTRAL, (sent,), sizes, chip, "auto").exposed
    found = layer_seconds(config, (sent, dots), sizes, chip, "auto")
    assert found.exposed == pytest.approx(max(0.0, waits - found.matmul))
    assert (found.exposed == 0) == (width > 64)
    blocking = layer_seconds(config, (sent, dots), sizes, chip, "none")
    assert blocking.exposed == pytest.approx(waits)


def test_all_experts_are_read_and_the_router_is_priced() -> None:
    asked = load("decode", batch=64, context=2048)
    step = cost(MIXTRAL, "WS 1D, batch yz", (1, 4, 4), asked, "v5e")
    e, heads = MIXTRAL.d_model, 2 * MIXTRAL.d_model * MIXTRAL.d_head
    # Key-value heads divide over y only, and each chip has a slice of the router.
    chip = 3 * e * 8 * MIXTRAL.d_ff / 16 + heads * 32 / 16 + heads * 8 / 4 + e / 16 * 8
    assert step.weight_bytes == pytest.approx(32 * 2 * chip)
    names = [item.name for item in step.items if isinstance(item, Transfer)]
    assert names.count("router logits") == 1
    assert "choices" in names
    alone = dataclasses.replace(MIXTRAL, experts=None)
    assert step.seconds > cost(alone, "WS 1D, batch yz", (1, 4, 4), asked, "v5e").seconds
    assert [i.names for i in step.items if isinstance(i, Einsum)].count(("w_router",)) == 1


@pytest.mark.parametrize("config", [SIX, SHARED], ids=["six", "shared"])
def test_memory_is_that_of_the_arrays(config: ModelConfig) -> None:
    """Of the weights, those of a chip on a mesh that divides all."""
    asked = load("decode", batch=8, context=32)
    predicted = cost(config, "WS 2D, heads", (2, 2, 2), asked, "v5e").memory.weights
    blocks = params_shapes(config)["blocks"]
    split = {"w_in": 8, "w_gate": 8, "w_out": 8, "w_q": 8, "w_o": 8, "b_in": 4, "b_gate": 4}
    split |= {"w_shared_in": 8, "w_shared_gate": 8, "w_shared_out": 8}
    split["w_kv"] = 4 if config.stored_kv_heads < 4 else 8
    held = sum(
        x.size * 2 / split.get(name, 1)
        for name, tree in blocks.items()
        for x in jax.tree.leaves(tree)
    )
    assert predicted == pytest.approx(held, rel=0.01)
