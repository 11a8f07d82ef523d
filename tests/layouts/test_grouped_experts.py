"""Experts that are multiplied with their own tokens only, against the reference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import layouts
from collective_einsum.chips import as_chip
from layouts import Experts, reference, tuning
from layouts.cost import experts_cost
from layouts.decoding.decoder import extender
from layouts.layers import dispatched_experts
from layouts.layers.dispatched_experts import SCOPE as SENT
from layouts.layers.grouped_experts import SCOPE as SORTED
from layouts.layers.routing import own_experts, route
from layouts.mesh.axis_collectives import AXES
from layouts.partitionings.expert_columns import expert_columns
from layouts.partitionings.feedforward_layout import feature_bias
from layouts.partitionings.named_layouts import as_feedforward
from layouts.partitionings.param_specs import WEIGHT_SPECS

from .arrangements import FEEDFORWARDS
from .test_experts import (
    BATCH,
    CONFIGS,
    FOUR,
    LENGTH,
    SIX,
    close,
    expected,
    parameters,
    sharded,
    with_router,
)

# How tokens come to the experts: all to every chip, or each to the chips that have its experts.
WAYS = {"sorted": SORTED, "sent": SENT}
# Rooms for all tokens of an even router, and for less than half of them: several rounds.
DEVIATIONS = {"one round": 4.0, "rounds": -0.6}


@pytest.fixture
def way(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """`way(name, rounds)`: tokens are sorted wherever they can be, and go in a way of `WAYS`."""

    def choose(name: str, rounds: str) -> None:
        sends = name == "sent"
        monkeypatch.setattr(experts_cost, "_saving", lambda *_: 1.0)
        monkeypatch.setattr(
            experts_cost, "_seconds", lambda _, work, __: float(work.rooms.dispatches != sends)
        )
        monkeypatch.setattr(tuning, "ROOM_TILE", 1)
        monkeypatch.setattr(tuning, "ROOM_DEVIATIONS", DEVIATIONS[rounds])

    extender.cache_clear()
    yield choose
    extender.cache_clear()


def scopes(config: Any, mesh: Any, plan: str) -> set[str]:
    """The ways in which a prefill brings tokens to their experts."""
    lowered = layouts.lower_prefill(config, mesh, batch=BATCH, length=LENGTH, plan=plan)
    text = lowered.as_text(debug_info=True)
    return {name for name, scope in WAYS.items() if scope in text}


SLOW = pytest.mark.slow
MORE = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("which", "weights", "shape", "plan", "name", "rounds"),
    [
        ("six", "f32", (2, 2, 2), "WG XYZ, batch xyz", "sorted", "one round"),
        ("four", "int8", (2, 2, 2), "WG X, batch yz", "sorted", "rounds"),
        pytest.param("six", "f32", (1, 2, 1), "WG X, heads", "sorted", "rounds", marks=SLOW),
        # A chip has halves of two experts.
        pytest.param("four", "f32", (1, 4, 2), "WG XY, heads", "sorted", "rounds", marks=SLOW),
        pytest.param("six", "int8", (2, 1, 1), "WG XY, heads", "sorted", "one round", marks=MORE),
        # Chips have experts of their own, or a half of one.
        ("six", "f32", (1, 2, 1), "WS 2D batch, batch yz", "sent", "rounds"),
        ("six", "f32", (1, 2, 1), "WS 2D batch, batch yz", "sorted", "one round"),
        ("four", "int8", (1, 2, 2), "WS 2D all-reduce, heads", "sorted", "rounds"),
        ("four", "int8", (1, 2, 2), "WS 2D batch, batch z", "sent", "one round"),
        ("four", "f32", (1, 4, 2), "WS 2D position, heads", "sent", "rounds"),
        ("shared", "f32", (1, 2, 2), "WS 2D batch, heads", "sent", "rounds"),
        ("shared", "int8", (1, 2, 2), "WS 2D all-reduce, heads", "sorted", "one round"),
        pytest.param("shared", "f32", (2, 2, 2), "WG X, batch yz", "sorted", "rounds", marks=SLOW),
        pytest.param("four", "f32", (1, 4, 2), "WS 2D batch, heads", "sent", "rounds", marks=MORE),
        pytest.param("six", "f32", (1, 1, 2), "WS 2D, heads", "sorted", "rounds", marks=SLOW),
        pytest.param("four", "f32", (1, 2, 2), "WS 1D, batch yz", "sorted", "rounds", marks=MORE),
    ],
    ids=str,
)
def test_as_the_reference(
    mesh_of: Any, way: Any, which: str, weights: str, shape: Any, plan: str, name: str, rounds: str
) -> None:
    way(name, rounds)
    config, mesh = CONFIGS[which], mesh_of(shape, "xyz")
    params = parameters(config, weights)
    assert close(sharded(config, params, mesh, plan), expected(config, params))
    assert scopes(config, mesh, plan) == {name}


@pytest.mark.parametrize(
    ("shape", "plan", "name"),
    [((1, 2, 1), "WG X, heads", "sorted"), ((1, 2, 1), "WS 2D batch, heads", "sent")],
    ids=str,
)
def test_all_tokens_may_have_the_same_experts(
    mesh_of: Any, way: Any, shape: Any, plan: str, name: str
) -> None:
    way(name, "one round")
    params = parameters(SIX)
    bias = params["blocks"]["b_router"].at[:, jnp.array([0, 3, 5])].add(50.0)
    crowded = with_router(params, b_router=bias)
    found = sharded(SIX, crowded, mesh_of(shape, "xyz"), plan)
    assert close(found, expected(SIX, crowded))
    assert not close(found, expected(SIX, params))


@pytest.mark.parametrize("fault", ["one round", "order"])
def test_would_see(mesh_of: Any, way: Any, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Tokens of later rounds that are dropped, and results that come back to other tokens."""
    way("sent", "rounds")
    if fault == "one round":
        monkeypatch.setattr(dispatched_experts, "in_rounds", lambda _, one, x: one(0, x))
    else:
        exchanged = dispatched_experts._exchanged
        monkeypatch.setattr(dispatched_experts, "_exchanged", lambda x, *a: exchanged(x[::-1], *a))
    params = parameters(FOUR)
    found = sharded(FOUR, params, mesh_of((1, 2, 1), "xyz"), "WS 2D batch, heads")
    assert not close(found, expected(FOUR, params))


@pytest.mark.parametrize(
    ("layout", "name"), [("WS 2D batch", "sent"), ("WS 2D batch", "sorted"), ("WG X", "sorted")]
)
@pytest.mark.parametrize("rounds", DEVIATIONS)
def test_gradients(mesh_of: Any, way: Any, layout: str, name: str, rounds: str) -> None:
    """Through a loop over rounds, of which nobody knows how many there are."""
    way(name, rounds)
    config, mesh = CONFIGS["shared"], mesh_of((1, 2, 2), "xyz")
    weights = jax.tree.map(lambda x: x[0], parameters(config)["blocks"])
    own = {name: weights[name] for name in WEIGHT_SPECS if name in weights}
    assert "w_shared_router" in own
    x = jax.random.normal(jax.random.key(1), (4, 8, config.d_model))

    def loss(feedforward: Any) -> Any:
        return lambda x, w: jnp.sum(jnp.sin(feedforward(x, w)))

    layer = loss(lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh))
    found = jax.jit(jax.grad(layer, (0, 1)))(x, own)
    wanted = jax.grad(loss(lambda x, w: reference.feedforward(x, w, config)), (0, 1))(x, own)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4),
        found,
        wanted,
    )


@pytest.mark.parametrize("how", ["blocking", "latency", "unidirectional", "x64"])
def test_every_schedule_sends_tokens(mesh_of: Any, way: Any, how: str) -> None:
    way("sent", "rounds")
    config, mesh = SIX, mesh_of((1, 2, 2), "xyz")
    config = dataclasses.replace(config, experts=Experts(8, 3, router_bias=True))
    names = ("w_in", "w_gate", "w_out", "w_router", "b_in", "b_gate", "b_out", "b_router")
    blocks = parameters(config)["blocks"]
    own = {name: blocks[name][0] for name in names}
    x = jax.random.normal(jax.random.key(3), (4, 6, config.d_model))
    given = {"mesh": mesh, "schedule": "auto" if how == "x64" else how}
    with jax.enable_x64(how == "x64"):
        found = jax.jit(
            lambda x, w: layouts.feedforward(x, w, config, "WS 2D batch", **given)  # type: ignore
        )(x, own)
    wanted = reference.feedforward(x, own, config)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def test_padding_has_no_expert() -> None:
    """All of it would have the same ones, and take rounds of its own."""
    config, weights = SIX, jax.tree.map(lambda x: x[0], parameters(SIX)["blocks"])
    mesh = jax.make_mesh((1, 1, 1), AXES, devices=jax.devices()[:1])
    counted = jnp.arange(6) % 3 > 0

    def experts(counted: jax.Array | None) -> jax.Array:
        def run(c: jax.Array) -> Any:
            found = route(c, None, weights, config, as_feedforward("WS 2D"), counted)
            assert found is not None
            return found.experts

        c = jax.random.normal(jax.random.key(2), (6, config.d_model))
        return jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False))(
            c
        )

    found, all_ = experts(counted), experts(None)
    np.testing.assert_array_equal(found[counted], all_[counted])
    assert (found[~counted] == config.expert_count).all()
    assert (all_ < config.expert_count).all()


def test_stationary_experts_whose_sums_are_over_x_are_not_sorted(mesh_of: Any, way: Any) -> None:
    way("sent", "one round")
    assert not scopes(FOUR, mesh_of((2, 2, 1), "xyz"), "WS 2D batch, batch z")


def test_few_tokens_are_not_sorted(mesh_of: Any) -> None:
    extender.cache_clear()
    assert not scopes(FOUR, mesh_of((2, 2, 2), "xyz"), "WG XYZ, batch xyz")


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
