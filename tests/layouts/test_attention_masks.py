"""Prompts with attention masks, padded on either side: the same as padded at the end with lengths."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED
from layouts.models.params import init

from .models import prompts

CONFIG, LENGTH = TINY_PADDED, 6
LENGTHS = np.array([6, 1, 4], np.int32)
TOKENS = np.asarray(prompts(CONFIG, 3, LENGTH))
PADDING = 7
RIGHT = np.where(np.arange(LENGTH) < LENGTHS[:, None], TOKENS, PADDING)
LEFT = np.stack([np.roll(row, -n) for row, n in zip(RIGHT, LENGTHS, strict=True)])
LEFT_MASK = (np.arange(LENGTH) >= LENGTH - LENGTHS[:, None]).astype(np.int64)
PARAMS = init(jax.random.key(0), CONFIG, jnp.float32)


def prefill(mesh: Any, tokens: Any, **how: Any) -> tuple[np.ndarray, Any]:
    cache = layouts.init_cache(CONFIG, mesh, 3, 8, dtype=jnp.float32)
    logits, cache = layouts.prefill(CONFIG, mesh, PARAMS, cache, tokens, **how)
    return np.asarray(logits), cache


def test_prefill_and_the_steps_after_it(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    wanted, cache = prefill(mesh, RIGHT, lengths=LENGTHS)
    after, _ = layouts.decode_step(CONFIG, mesh, PARAMS, cache, [1, 2, 3])
    for tokens, mask in (
        (LEFT, LEFT_MASK),
        (LEFT.tolist(), LEFT_MASK.tolist()),
        (jnp.asarray(LEFT), LEFT_MASK.astype(bool)),
        (RIGHT, LEFT_MASK[:, ::-1]),
        (np.roll(RIGHT, 1, axis=1)[1:2].repeat(3, 0), np.eye(6, dtype=int)[[1, 1, 1]]),
    ):
        found, cache = prefill(mesh, tokens, attention_mask=mask)
        if len(np.unique(np.asarray(tokens), axis=0)) == 1:
            np.testing.assert_array_equal(cache.lengths, [1, 1, 1])
            np.testing.assert_allclose(found[0], wanted[1], rtol=1e-5, atol=1e-5)
            continue
        np.testing.assert_array_equal(cache.lengths, LENGTHS)
        np.testing.assert_array_equal(found, wanted)
        again, _ = layouts.decode_step(CONFIG, mesh, PARAMS, cache, [1, 2, 3])
        np.testing.assert_array_equal(again, after)
    unseen, _ = prefill(mesh, LEFT)
    assert np.abs(unseen - wanted)[1:].max() > 1e-3


def test_generate(mesh_of: Any) -> None:
    mesh = mesh_of((1, 4, 2), "xyz")
    given: Any = {"max_new_tokens": 3, "seeds": [1, 2, 3], "sampling": layouts.Sampling(1.0)}
    wanted, _ = layouts.generate(CONFIG, mesh, PARAMS, RIGHT, lengths=LENGTHS, **given)
    found, _ = layouts.generate(CONFIG, mesh, PARAMS, LEFT, attention_mask=LEFT_MASK, **given)
    np.testing.assert_array_equal(found, wanted)
    unseen, _ = layouts.generate(CONFIG, mesh, PARAMS, LEFT, **given)
    assert np.asarray(unseen).tolist() != np.asarray(wanted).tolist()


def test_refuses_in_words(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    hole, other = LEFT_MASK.copy(), LEFT_MASK.astype(float)
    hole[2] = [1, 1, 0, 1, 1, 1]
    for how, message in (
        ({"attention_mask": hole}, r"has a hole in row 2: \[1, 1, 0, 1, 1, 1\]; its ones must be"),
        ({"attention_mask": LEFT_MASK, "lengths": LENGTHS}, "both say which tokens count"),
        ({"attention_mask": LEFT_MASK[:, 1:]}, r"of shape \(3, 5\) must have that .*\(3, 6\)"),
        ({"attention_mask": LEFT_MASK * 2}, "must hold 1 where a token counts and 0"),
        ({"attention_mask": other}, "must hold 1 where a token counts and 0"),
    ):
        given: dict[str, Any] = dict(how)
        with pytest.raises(ValueError, match=message):
            prefill(mesh, LEFT, **given)
    with pytest.raises(ValueError, match="prompt 1 has length 0"):
        layouts.generate(
            *(CONFIG, mesh, PARAMS, LEFT),
            max_new_tokens=1,
            attention_mask=LEFT_MASK * np.array([[1], [0], [1]]),
        )
    with pytest.raises(ValueError, match="must be known before anything is compiled"):
        jax.jit(lambda mask: prefill(mesh, LEFT, attention_mask=mask)[0])(LEFT_MASK)


def test_a_row_without_tokens_stays_as_it_is(mesh_of: Any) -> None:
    mask = LEFT_MASK * np.array([[1], [0], [1]])
    _, cache = prefill(mesh_of((2, 2, 2), "xyz"), LEFT, attention_mask=mask)
    np.testing.assert_array_equal(cache.lengths, [6, 0, 4])


def test_on_explicit_axes(mesh_of: Any) -> None:
    """Settings that are pytrees of several arrays, too."""
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz", explicit=True)
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    given: Any = {"max_new_tokens": 2, "attention_mask": LEFT_MASK, "seeds": [4, 5, 6]}
    given["sampling"] = layouts.Sampling([0.5, 1.0, 1.5], top_k=7)
    found, _ = layouts.generate(config, mesh, params, LEFT, **given)
    plain = mesh_of((2, 2, 2), "xyz")
    wanted, _ = layouts.generate(config, plain, jax.device_get(params), LEFT, **given)
    np.testing.assert_array_equal(found, wanted)
