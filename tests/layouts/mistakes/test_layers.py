"""Layers called alone: taken as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.models.named_models import TINY_GROUPED

from .room import BATCH, PLAN, Room, refuses

pytestmark = pytest.mark.slow


def layer(room: Room, kind: Any, layout: Any, *attention: Any, config: Any = TINY_GROUPED) -> Any:
    x = jnp.ones((BATCH, 2, 32))
    weights = jax.tree.map(lambda w: w[0], room.params["blocks"])
    return jax.eval_shape(lambda: kind(x, weights, config, layout, *attention, mesh=room.mesh))


def test_layers_take_names_and_classes(room: Room) -> None:
    shape = (BATCH, 2, 32)
    for layout in ("WS 2D", layouts.WeightStationary2D):
        assert layer(room, layouts.feedforward, layout, config="tiny-grouped").shape == shape
    for layout, attention in (("WS 2D", "batch xyz"), (PLAN.feedforward, layouts.BatchSharded)):
        y, _ = layer(room, layouts.attention, layout, attention, config="tiny-grouped")
        assert y.shape == shape


def test_layers_refuse_what_is_no_layout(room: Room) -> None:
    head, one = layouts.HeadSharded(), layouts.WeightStationary1D()
    refuses(lambda: layer(room, layouts.feedforward, PLAN), "is no feedforward layout, but Partit")
    refuses(
        lambda: layer(room, layouts.feedforward, head), "is no feedforward layout, but an atten"
    )
    refuses(lambda: layer(room, layouts.feedforward, one, config=3), "config=3 is no ModelConfig")
    for kind in (layouts.attention, layouts.parallel_block, layouts.serial_block):
        refuses(
            lambda kind=kind: layer(room, kind, head, one), "is no feedforward layout, but an at"
        )
        refuses(
            lambda kind=kind: layer(room, kind, one, one), "is no attention layout, but a feedf"
        )
        refuses(lambda kind=kind: layer(room, kind, one, "head"), "; did you mean 'heads'?")


MISSHAPEN = (
    (lambda w: w | {"w_in": w["w_in"][:, :32]}, "weights['w_in'] has shape (32, 32), but a lay"),
    (lambda w: w | {"w_in": w["w_in"][None]}, "give those of one layer, such as w[0] of stacked"),
)
ILL_NAMED = (
    (lambda w: {k: v for k, v in w.items() if k != "w_gate"}, "have no 'w_gate', which a layer"),
    (lambda w: w | {"b_in": w["w_in"][0]}, "have 'b_in', which a layer of this config does not"),
    (lambda w: [w], "weights must be those of one layer, a dict with "),
    (lambda w: {"blocks": w}, "weights are those of a whole model; give those of one layer"),
)


@pytest.mark.parametrize(
    ("whole", "change", "words"),
    [
        *((True, *each) for each in (*MISSHAPEN, *ILL_NAMED)),
        *((False, *each) for each in ILL_NAMED),
    ],
)
def test_weights_of_a_layer(room: Room, whole: bool, change: Any, words: str) -> None:
    x, weights = jnp.ones((BATCH, 2, 32)), jax.tree.map(lambda w: w[0], room.params["blocks"])
    mesh = room.mesh if whole else None
    for kind in (layouts.feedforward, layouts.serial_block, layouts.parallel_block):
        attention = () if kind is layouts.feedforward else (layouts.HeadSharded(),)

        def call(kind: Any = kind, attention: Any = attention) -> Any:
            return kind(x, change(weights), TINY_GROUPED, PLAN.feedforward, *attention, mesh=mesh)

        refuses(call, words)


def test_activations_of_a_layer(room: Room) -> None:
    weights = jax.tree.map(lambda w: w[0], room.params["blocks"])
    for shape in ((BATCH, 32), (BATCH, 2, 16)):
        x = jnp.ones(shape)
        refuses(
            lambda x=x: layouts.feedforward(x, weights, TINY_GROUPED, "WS 2D", mesh=room.mesh),
            f"x of shape {shape} must be [batch, length, d_model]",
        )
    x, k = jnp.ones((BATCH, 2, 32)), jnp.zeros((BATCH, 2, 4, 8))
    entries, lengths = layouts.Entries(k), np.zeros(BATCH, np.int32)

    def attends(**how: Any) -> Any:
        pair = ("WS 2D", "batch xyz")
        return layouts.attention(x, weights, TINY_GROUPED, *pair, mesh=room.mesh, **how)

    pair = "must be the keys and values of one layer, a pair of layouts.Entries(array [B, K, S, D])"
    for past in ((k, k), room.cache(), entries):
        refuses(lambda past=past: attends(past=past, lengths=lengths), pair)
    refuses(lambda: attends(prefix=layouts.Prefix(entries, entries)), "a pair of layouts.Entries(")
    refuses(
        lambda: attends(past=(entries, entries)), "past is given without lengths; give lengths="
    )
    refuses(
        lambda: attends(past=(entries, entries), lengths=lengths[:3]),
        "lengths of shape (3,) must be (8,), one per sequence",
    )
    y, _ = jax.eval_shape(lambda: attends(past=(entries, entries), lengths=lengths.tolist()))
    assert y.shape == x.shape
