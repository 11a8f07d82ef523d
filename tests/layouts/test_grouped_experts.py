"""Tokens sorted by expert, against the reference; and where steps and the cost model sort them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

import layouts
from collective_einsum.chips import as_chip
from layouts import Experts
from layouts.cost import experts_cost
from layouts.cost.layer_items import Copies, Einsum, Transfer
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.decoding.decoder import extender
from layouts.layers.grouped_experts import SCOPE
from layouts.layers.routing import own_experts
from layouts.mesh.axis_collectives import AXES
from layouts.partitionings.expert_columns import expert_columns
from layouts.partitionings.feedforward_layout import feature_bias
from layouts.partitionings.named_layouts import as_feedforward
from layouts.tuning import GROUPED_TILE

from .arrangements import FEEDFORWARDS
from .test_experts import (
    BATCH,
    CONFIGS,
    FOUR,
    LENGTH,
    MIXTRAL,
    QWEN3,
    SIX,
    close,
    expected,
    parameters,
    sharded,
    with_router,
)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tokens are sorted wherever they can be."""
    monkeypatch.setattr(experts_cost, "_saving", lambda *_: 1.0)
    extender.cache_clear()
    yield
    extender.cache_clear()


def sorts(config: Any, mesh: Any, plan: str) -> bool:
    """Whether a prefill sorts its tokens."""
    lowered = layouts.lower_prefill(config, mesh, batch=BATCH, length=LENGTH, plan=plan)
    return SCOPE in lowered.as_text(debug_info=True)


@pytest.mark.parametrize(
    ("which", "weights", "shape", "plan"),
    [
        ("six", "f32", (2, 2, 2), "WG XYZ, batch xyz"),
        ("four", "int8", (2, 2, 2), "WG X, batch yz"),
        pytest.param("six", "f32", (1, 2, 1), "WG X, heads", marks=pytest.mark.slow),
        # A chip has halves of two experts.
        pytest.param("four", "f32", (1, 4, 2), "WG XY, heads", marks=pytest.mark.slow),
        pytest.param("six", "int8", (2, 1, 1), "WG XY, heads", marks=pytest.mark.slow),
        # Chips have experts of their own, or a half of one.
        ("six", "f32", (1, 2, 1), "WS 2D batch, batch yz"),
        ("four", "int8", (1, 2, 2), "WS 2D all-reduce, heads"),
        pytest.param("four", "f32", (1, 4, 2), "WS 2D position, heads", marks=pytest.mark.slow),
        pytest.param("six", "f32", (1, 1, 2), "WS 2D, heads", marks=pytest.mark.slow),
        pytest.param("four", "f32", (1, 2, 2), "WS 1D, batch yz", marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.usefixtures("always")
def test_as_the_reference(mesh_of: Any, which: str, weights: str, shape: Any, plan: str) -> None:
    config, mesh = CONFIGS[which], mesh_of(shape, "xyz")
    params = parameters(config, weights)
    assert close(sharded(config, params, mesh, plan), expected(config, params))
    assert sorts(config, mesh, plan)


@pytest.mark.usefixtures("always")
def test_all_tokens_may_have_the_same_experts(mesh_of: Any) -> None:
    params = parameters(SIX)
    bias = params["blocks"]["b_router"].at[:, jnp.array([0, 3, 5])].add(50.0)
    crowded = with_router(params, b_router=bias)
    found = sharded(SIX, crowded, mesh_of((1, 2, 1), "xyz"), "WG X, heads")
    assert close(found, expected(SIX, crowded))
    assert not close(found, expected(SIX, params))


@pytest.mark.usefixtures("always")
def test_stationary_experts_whose_sums_are_over_x_are_not_sorted(mesh_of: Any) -> None:
    assert not sorts(FOUR, mesh_of((2, 2, 1), "xyz"), "WS 2D batch, batch z")


def test_few_tokens_are_not_sorted(mesh_of: Any) -> None:
    extender.cache_clear()
    assert not sorts(FOUR, mesh_of((2, 2, 2), "xyz"), "WG XYZ, batch xyz")


def test_parts_of_an_expert_stay_together_or_are_not_sorted() -> None:
    """y brings every other half of two experts, which lie apart on a chip with both of one."""
    config = dataclasses.replace(FOUR, experts=Experts(2, 1))
    layout = as_feedforward("WG XY")
    columns = expert_columns(config, layout, {"x": 1, "y": 4, "z": 2})
    assert not columns.are_apart
    assert columns.owners.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    chip, sizes = as_chip("v5e"), {"x": 1, "y": 4, "z": 2}
    assert experts_cost.grouped(config, layout, sizes, 10**6, 2, chip) is None
    whole = expert_columns(config, as_feedforward("WG XYZ"), sizes)
    assert whole.owners.tolist() == [0, 1]
    assert whole.width == config.d_ff


@pytest.mark.parametrize("shape", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_columns_belong_to_the_experts_that_a_bias_would_have(mesh_of: Any, shape: Any) -> None:
    """The table of owners against the numbers of experts, gathered as a bias is."""
    mesh, sizes = mesh_of(shape, AXES), dict(zip(AXES, shape, strict=True))
    for config in (SIX, FOUR):
        ids = jnp.repeat(jnp.arange(config.expert_count), config.d_ff)
        for layout in FEEDFORWARDS:

            def agree(ids: jax.Array, layout: Any = layout, config: Any = config) -> jax.Array:
                wanted = feature_bias(layout, ids, ("y", "z"), "blocking")
                width = expert_columns(config, layout, sizes).width
                found = jnp.repeat(own_experts(config, layout), width)
                return jnp.all(found == wanted)[None]

            same = jax.shard_map(
                agree, mesh=mesh, in_specs=P(("y", "z")), out_specs=P(AXES), check_vma=False
            )
            assert jax.jit(same)(ids).all(), layout


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
    """All tokens come to a chip, which has the sixteenth part of the experts' work."""
    experts = QWEN3.experts
    assert experts is not None
    asked = load("prefill", batch=16, length=2048)
    found = cost(QWEN3, f"{feedforward}, heads", SHAPE, asked, "v5p")
    assert sorts_in(found)
    assert not [i for i in found.items if isinstance(i, Transfer) and i.name == "experts"]
    expert = 2 * 3 * QWEN3.d_model * QWEN3.d_ff
    chosen = 16 * 2048 * experts.per_token / 16
    einsums = [i for i in found.items if isinstance(i, Einsum) and i.experts > 1]
    sorted_flops = [i.flops for i in einsums]
    # Half of a tile is not full for each of a chip's experts.
    tiles = experts.count // 16 * GROUPED_TILE // 2
    assert sum(sorted_flops) == pytest.approx((chosen + tiles) * expert)
    # A chip's experts may be all that every token has.
    room = 16 * 2048 * min(experts.per_token, experts.count // 16)
    assert {i.held_rows for i in einsums} == {room}
    assert found.memory.temporaries > 2 * room * 2 * QWEN3.d_ff
    ends = [i for i in found.items if isinstance(i, Transfer) and i.name in ("activations", "sums")]
    bytes_ = 2 * 16 * 2048 * QWEN3.d_model
    assert {i.bytes for i in ends[-2:]} == {bytes_}
    assert ends[-1].kind == ("all-reduce" if feedforward.endswith("reduce") else "reduce-scatter")


def test_the_planner_sorts_prompts() -> None:
    found = layouts.plan(
        MIXTRAL, chip="v5e", mesh_shape=SHAPE, phase="prefill", batch=8, length=2048
    )
    assert found.best.feedforward == "WS 2D position"
    assert sorts_in(found.cost)


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


def test_memory_is_that_of_the_arrays() -> None:
    """Of the weights, those of a chip on a mesh that divides all."""
    asked = load("decode", batch=8, context=32)
    predicted = cost(SIX, "WS 2D, heads", (2, 2, 2), asked, "v5e").memory.weights
    blocks = jax.eval_shape(lambda: parameters(SIX))["blocks"]
    split = {"w_in": 8, "w_gate": 8, "w_out": 8, "w_q": 8, "w_o": 8, "b_in": 4, "b_gate": 4}
    split["w_kv"] = 4 if SIX.stored_kv_heads < 4 else 8
    held = sum(
        x.size * 2 / split.get(name, 1)
        for name, tree in blocks.items()
        for x in jax.tree.leaves(tree)
    )
    assert predicted == pytest.approx(held, rel=0.01)
