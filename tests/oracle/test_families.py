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

BATCH, LENGTH, STEPS, DRAWN = 8, 7, 4, 64
LENGTHS = np.array([7, 1, 3, 5, 2, 6, 4, 7], np.int32)
# Layouts change from one case to the next.
PLACES = {
    (2, 2, 2): ("WS 2D, heads", "WG XY, batch xyz", "WS 2D all-reduce, batch yz"),
    (1, 4, 2): ("WS 2D batch, batch xyz", "WS 2D, batch z", "WG XYZ, batch xyz"),
    (8, 1, 1): ("WS 1D, batch xyz", "WS 2D all-reduce, heads", "WG X, batch xyz"),
}
# The first case of each model type.
FIRST = {kind: case for case, (kind, _) in reversed(CASES.items())}.values()


def padded(config: ModelConfig) -> ModelConfig:
    """With heads and tokens that every axis of 8 devices divides."""
    config = dataclasses.replace(config, padded_vocab=72)
    heads = 8 if 8 % config.kv_heads == 0 or config.kv_heads == config.heads else 16
    return dataclasses.replace(config, padded_heads=heads)


def expected(model: Any, prompts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [STEPS, batch, vocab] of greedy decoding, and tokens [DRAWN, batch]."""
    rows = np.arange(BATCH)
    # What follows a sequence changes nothing before it.
    tokens = np.pad(prompts, ((0, 0), (0, DRAWN)))
    logits = []
    for step in range(DRAWN):
        last = LENGTHS + step - 1
        logits.append(logits_of(model, tokens[:, : last.max() + 1])[rows, last])
        tokens[rows, last + 1] = logits[-1].argmax(-1)
    drawn = tokens[rows, LENGTHS + np.arange(DRAWN)[:, None]]
    return np.stack(logits[:STEPS]), drawn


def decoded(prefill: Any, step: Any, given: np.ndarray) -> np.ndarray:
    """Logits [steps, batch, stored vocab] where the tokens `given` follow the prompts."""
    logits, cache = prefill()
    rows = [np.asarray(logits)]
    for tokens in given[: STEPS - 1]:
        logits, cache = step(tokens.astype(np.int32), cache)
        rows.append(np.asarray(logits))
    return np.stack(rows)


def compare(found: np.ndarray, wanted: np.ndarray, vocab: int) -> None:
    """Refuses an error of 1e-4 of the largest logit, another next token, or a finite padded logit."""
    assert np.all(np.isneginf(found[..., vocab:]))
    found = found[..., :vocab]
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    np.testing.assert_array_equal(found.argmax(-1), wanted.argmax(-1))


@pytest.mark.parametrize(
    "everywhere", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["", "everywhere"]
)
@pytest.mark.parametrize(
    "case", [c if c in FIRST else pytest.param(c, marks=pytest.mark.slow) for c in CASES]
)
def test_as_transformers(mesh_of: Any, tmp_path: Path, case: str, everywhere: bool) -> None:
    """On one mesh, where the first case of a model type also draws tokens; or `everywhere`, on all."""
    if everywhere:
        # As `forgets_programs`, which waits for the end of this file: of so many, the compiler crashes.
        jax.clear_caches()
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

    place, config = list(CASES).index(case), padded(read)
    places = list(PLACES.items())
    for shape, plans in places if everywhere else [places[place % len(places)]]:
        mesh, plan = mesh_of(shape, "xyz"), plans[place % len(plans)]
        params = load(tmp_path, mesh, config=config, dtype=jnp.float32, unrolled=place % 2 == 1)
        assert jax.tree.all(jax.tree.map(lambda x: x.dtype == jnp.float32, params))
        cache = layouts.init_cache(config, mesh, BATCH, 12, plan=plan, dtype=jnp.float32)
        given: Any = {"config": config, "mesh": mesh, "params": params, "plan": plan}
        found = decoded(
            lambda given=given, cache=cache: layouts.prefill(
                **given, cache=cache, tokens=prompts, lengths=LENGTHS
            ),
            lambda tokens, cache, given=given: layouts.decode_step(
                **given, cache=cache, tokens=tokens
            ),
            drawn,
        )
        compare(found, wanted, read.vocab)
        if case not in FIRST and not everywhere:
            continue
        tokens, _ = layouts.generate(
            **given, tokens=prompts, lengths=LENGTHS, max_new_tokens=DRAWN, prefill_plan=plan
        )
        np.testing.assert_array_equal(np.asarray(tokens), drawn.T)
