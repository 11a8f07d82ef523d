"""Caches and prefixes: taken as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.models.named_models import TINY_GROUPED

from .room import BATCH, PLAN, TOKENS, VOCAB, Room, refuses

pytestmark = pytest.mark.slow


def test_a_donated_cache(room: Room) -> None:
    cache = room.cache()
    _, following = room.prefill(cache=cache)
    words = "and return the one to use next: logits, cache = layouts.decode_step("
    for call in (room.prefill, room.decode):
        refuses(lambda call=call: call(cache=cache), words)
    refuses(lambda: layouts.move_cache(TINY_GROUPED, room.mesh, cache, PLAN), words)
    refuses(lambda: layouts.shared_prefix(cache), words)
    logits, _ = room.decode(cache=following)
    assert logits.shape == (BATCH, VOCAB)


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (None, "cache must be a layouts.Cache, got NoneType; make one with layouts.init_cache"),
        ((1, 2), "cache must be a layouts.Cache, got tuple"),
        ({"k": 1}, "cache must be a layouts.Cache, got dict"),
    ],
)
def test_what_is_no_cache(room: Room, cache: Any, words: str) -> None:
    for call in (room.prefill, room.decode):
        refuses(lambda call=call: call(cache=cache), words)
    refuses(lambda: layouts.move_cache(TINY_GROUPED, room.mesh, cache, PLAN), words)
    refuses(lambda: layouts.shared_prefix(cache), words)


def test_all_that_a_step_returns_is_no_cache(room: Room) -> None:
    refuses(
        lambda: room.decode(cache=room.prefill()), "steps return (logits, cache); give the second"
    )


def test_a_cache_of_another_plan_is_taken(room: Room) -> None:
    wanted, _ = room.decode()
    logits, _ = room.decode(cache=room.cache(plan="WS 2D, heads"))
    np.testing.assert_array_equal(logits, wanted)


def test_what_is_no_prefix(room: Room) -> None:
    for prefix in (room.cache(), TOKENS):
        refuses(
            lambda each=prefix: room.generate(prefix=each), "make one with layouts.shared_prefix("
        )
        refuses(lambda each=prefix: room.cache(prefix=each), "prefix must be a layouts.Prefix, got")
    k = layouts.Entries(jnp.zeros((2, 1, 4, 8)))
    refuses(
        lambda: room.generate(prefix=layouts.Prefix(k, k)),
        "the prefix has shape (2, 1, 4, 8), but tiny-grouped needs (2, 2, 4, 8)",
    )
