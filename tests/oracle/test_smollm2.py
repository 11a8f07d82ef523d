"""A real model from its GGUF file: SmolLM2-135M-Instruct on 2 x 2 x 2 devices, against transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import layouts
from layouts import reference
from layouts.checkpoints import load
from layouts.models.config import ModelConfig

from .smollm2 import NEW_TOKENS, STORED, folder, tokenizer

ROOT = Path(__file__).parent.parent.parent
STORED_TOKENS = json.loads(STORED.read_text())
LENGTHS = np.array([len(prompt) for prompt in STORED_TOKENS["prompts"]], np.int32)
# Sequences of a text, and tokens in each.
SEQUENCES, CONTEXT = 20, 513


def prompts() -> np.ndarray:
    """The chat prompts, padded at the end."""
    padded = np.zeros((len(LENGTHS), LENGTHS.max()), np.int32)
    for row, prompt in zip(padded, STORED_TOKENS["prompts"], strict=True):
        row[: len(prompt)] = prompt
    return padded


def config() -> ModelConfig:
    """With 12 heads, which y and z divide, instead of 9."""
    return dataclasses.replace(layouts.config_from_hf(folder()), padded_heads=12)


def drawn(mesh: Any, dtype: str) -> np.ndarray:
    params = load(folder(), mesh, config=config(), dtype=dtype)
    tokens, _ = layouts.generate(
        config(), mesh, params, prompts(), max_new_tokens=NEW_TOKENS, lengths=LENGTHS
    )
    return np.asarray(tokens)


def test_tokens_of_transformers(mesh_of: Any) -> None:
    tokens = drawn(mesh_of((2, 2, 2), "xyz"), "float32")
    np.testing.assert_array_equal(tokens, STORED_TOKENS["float32"])


def test_bfloat16_tokens_of_transformers(mesh_of: Any) -> None:
    """All tokens of most prompts; logits that are rounded nearly tie more often."""
    tokens = drawn(mesh_of((2, 2, 2), "xyz"), "bfloat16")
    assert (tokens == STORED_TOKENS["bfloat16"]).all(axis=1).sum() > len(LENGTHS) / 2


def test_int8_logits(mesh_of: Any) -> None:
    """The logits after the prompts are within 5% of the largest of those of bfloat16 weights."""
    mesh, logits = mesh_of((2, 2, 2), "xyz"), {}
    for weights in ("plain", "int8"):
        params = load(folder(), mesh, config=config(), weights=weights)
        cache = layouts.init_cache(config(), mesh, len(LENGTHS), 64)
        made, _ = layouts.prefill(config(), mesh, params, cache, prompts(), lengths=LENGTHS)
        logits[weights] = np.asarray(made, np.float32)
    error = np.abs(logits["int8"] - logits["plain"])
    assert error.max() < 0.05 * np.abs(logits["plain"]).max()
    assert error.max() > 0


def text() -> np.ndarray:
    """Tokens [SEQUENCES, CONTEXT] of this project's documents."""
    files = sorted((ROOT / "docs").glob("*.md"))
    tokens = tokenizer()("\n".join(file.read_text("utf-8") for file in files))["input_ids"]
    count = SEQUENCES * CONTEXT
    assert len(tokens) >= count > 10_000
    return np.array(tokens[:count], np.int32).reshape(SEQUENCES, CONTEXT)


@jax.jit
def log_likelihoods(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The sum of the log-likelihoods of tokens [B, L] by logits [B, L, vocab]."""
    scores = jax.nn.log_softmax(logits, axis=-1)
    return jnp.take_along_axis(scores, tokens[..., None], axis=-1).sum()


def perplexity(weights: str, mesh: Any, tokens: np.ndarray) -> float:
    own = layouts.config_from_hf(folder())
    params = load(folder(), mesh, weights=weights)
    total = 0.0
    for batch in tokens.reshape(-1, 4, CONTEXT):
        cache = reference.empty_cache(own, 4, CONTEXT - 1, jnp.bfloat16)
        counts = jnp.full((4,), CONTEXT - 1, jnp.int32)
        logits, _ = reference.extend(params, own, jnp.asarray(batch[:, :-1]), cache, counts)
        total += float(log_likelihoods(logits, jnp.asarray(batch[:, 1:])))
    return float(np.exp(-total / tokens[:, 1:].size))


def test_int8_perplexity(mesh_of: Any) -> None:
    tokens, mesh = text(), mesh_of((1, 1, 1), "xyz")
    plain, int8 = (perplexity(weights, mesh, tokens) for weights in ("plain", "int8"))
    print(f"perplexity: {plain:.4f} in bfloat16, {int8:.4f} in int8")
    # A model that reads nothing would be near the size of the vocabulary.
    assert plain < 50
    assert abs(int8 / plain - 1) < 0.01
