"""Tokens: taken as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .room import BATCH, TOKENS, VOCAB, Room, refuses

pytestmark = pytest.mark.slow


def test_tokens_of_a_step_may_have_a_length_of_one_and_be_lists(room: Room) -> None:
    wanted, _ = room.decode()
    on_one = jax.device_put(TOKENS[:, 0], jax.devices()[1])
    given = (TOKENS[:, :1], TOKENS[:, 0].tolist(), TOKENS[:, :1].tolist(), list(TOKENS[:, 0]))
    for tokens in (*given, list(jnp.asarray(TOKENS[:, 0])), on_one):
        logits, _ = room.decode(tokens)
        np.testing.assert_array_equal(logits, wanted)


def test_prompts_may_be_lists(room: Room) -> None:
    wanted, _ = room.prefill()
    for tokens in (TOKENS.tolist(), list(TOKENS), tuple(map(tuple, TOKENS.tolist()))):
        logits, _ = room.prefill(tokens, lengths=[2] * BATCH)
        np.testing.assert_array_equal(logits, wanted)
    drawn, _ = room.generate(TOKENS.tolist())
    on_one = jax.device_put((TOKENS, np.full(BATCH, 2, np.int32)), jax.devices()[1])
    np.testing.assert_array_equal(drawn, room.generate(on_one[0], lengths=on_one[1])[0])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (TOKENS[0], "tokens of shape (2,) must be [batch, length]"),
        (TOKENS[0], "write tokens[None] for one sequence"),
        (TOKENS[None], "tokens of shape (1, 8, 2) must be [batch, length]"),
        ([[1, 2], [1], [1, 2, 3]], "lengths 2, 1, 3; pad each to 3 at its end"),
        ([[1, 2], [1]], "pass their lengths as lengths="),
        ([np.array([1, 2]), np.array([1])], "tokens have lengths 2, 1;"),
        ([[1, 2], 3], "tokens are no array of integers"),
        (["in words"], "tokens must be integers, got strings; encode them first"),
        ([[1.0]], "tokens must be integers, got float64"),
        ([[True]], "tokens must be integers, got bool"),
        (None, "tokens must be integers, got None"),
        ([], "tokens of shape (0,) must be [batch, length], neither of them 0"),
    ],
)
def test_tokens_that_are_no_prompts(room: Room, tokens: Any, words: str) -> None:
    refuses(lambda: room.prefill(tokens), words)
    refuses(lambda: room.generate(tokens), words)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (TOKENS, "must be [batch], one token for each sequence; call layouts.prefill"),
        (3, "tokens of shape () must be [batch], one token for each sequence; write [token]"),
        ([1.0] * BATCH, "tokens must be integers, got float64"),
    ],
)
def test_tokens_that_are_no_step(room: Room, tokens: Any, words: str) -> None:
    refuses(lambda: room.decode(tokens), words)


def test_the_advice_about_prompts(room: Room) -> None:
    plan = "WS 2D, heads"
    cache = room.cache(1, plan=plan)
    logits, cache = room.prefill(TOKENS[0][None], cache=cache, plan=plan)
    assert logits.shape == (1, VOCAB)
    refuses(lambda: room.decode(3, cache=cache, plan=plan), "write [token]")
    assert room.decode([3], cache=cache, plan=plan)[0].shape == (1, VOCAB)
    ragged = [[5, 6], [7], *[[8, 9]] * 6]
    refuses(lambda: room.prefill(ragged), "pad each to 2 at its end, with any token")
    padded = [each + [0] * (2 - len(each)) for each in ragged]
    logits, _ = room.prefill(padded, lengths=[len(each) for each in ragged])
    wanted, _ = room.prefill(np.full((BATCH, 1), 7))
    np.testing.assert_allclose(logits[1], wanted[1], rtol=1e-5, atol=1e-5)
