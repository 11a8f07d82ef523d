"""Models of every family: their weights in layouts against transformers' own forward pass."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.checkpoints import load
from layouts.models.config import ModelConfig

from .models import CASES, logits_of, make, save

BATCH, LENGTH, STEPS = 8, 7, 4
LENGTHS = np.array([7, 1, 3, 5, 2, 6, 4, 7], np.int32)
PLACES = [
    ((2, 2, 2), "WS 2D, heads"),
    ((1, 4, 2), "WS 2D batch, batch xyz"),
    ((2, 2, 2), "WG XY, batch xyz"),
    ((8, 1, 1), "WS 1D, batch xyz"),
]


def padded(config: ModelConfig) -> ModelConfig:
    """With heads and tokens that every axis of 8 devices divides."""
    config = dataclasses.replace(config, padded_vocab=72)
    heads = 8 if 8 % config.kv_heads == 0 or config.kv_heads == config.heads else 16
    return dataclasses.replace(config, padded_heads=heads)


def expected(model: Any, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [steps, batch, vocab] of greedy decoding, and its tokens [steps, batch]."""
    rows, drawn = [], []
    for prompt, length in zip(prompts, LENGTHS, strict=True):
        tokens, own = prompt[:length], []
        for _ in range(STEPS):
            own.append(logits_of(model, tokens)[-1])
            tokens = np.append(tokens, own[-1].argmax())
        rows.append(own)
        drawn.append(tokens[length:])
    return np.stack(rows, 1), np.stack(drawn, 1)


def decoded(prefill: Any, step: Any, given: np.ndarray) -> np.ndarray:
    """Logits [steps, batch, stored vocab] where the tokens `given` follow the prompts."""
    logits, cache = prefill()
    rows = [np.asarray(logits)]
    for tokens in given[:-1]:
        logits, cache = step(tokens.astype(np.int32), cache)
        rows.append(np.asarray(logits))
    return np.stack(rows)


def compare(found: np.ndarray, wanted: np.ndarray, vocab: int) -> None:
    """Refuses an error of 1e-4 of the largest logit, another next token, or a finite padded logit."""
    assert np.all(np.isneginf(found[..., vocab:]))
    found = found[..., :vocab]
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize("case", CASES)
def test_as_transformers(mesh_of: Any, tmp_path: Path, case: str) -> None:
    model = make(*CASES[case])
    save(model, tmp_path)
    read = layouts.config_from_hf(tmp_path)
    prompts = np.random.default_rng(0).integers(0, read.vocab, (BATCH, LENGTH)).astype(np.int32)
    wanted, drawn = expected(model, prompts)
    one = mesh_of((1, 1, 1), "xyz")
    plain = load(tmp_path, one, dtype=jnp.float32)
    found = decoded(
        lambda: reference.prefill(plain, read, jnp.asarray(prompts), jnp.asarray(LENGTHS), 12),
        lambda tokens, cache: reference.decode_step(plain, read, jnp.asarray(tokens), cache),
        drawn,
    )
    compare(found, wanted, read.vocab)

    shape, plan = PLACES[list(CASES).index(case) % len(PLACES)]
    mesh, config = mesh_of(shape, "xyz"), padded(read)
    unrolled = list(CASES).index(case) % 2 == 1
    params = load(tmp_path, mesh, config=config, dtype=jnp.float32, unrolled=unrolled)
    cache = layouts.init_cache(config, mesh, BATCH, 12, plan=plan, dtype=jnp.float32)
    found = decoded(
        lambda: layouts.prefill(config, mesh, params, cache, prompts, lengths=LENGTHS, plan=plan),
        lambda tokens, cache: layouts.decode_step(config, mesh, params, cache, tokens, plan=plan),
        drawn,
    )
    compare(found, wanted, read.vocab)
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == jnp.float32, params))
