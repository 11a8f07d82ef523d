"""A real model from its GGUF file: SmolLM2-135M-Instruct on 2 x 2 x 2 devices, against transformers."""

from __future__ import annotations

import dataclasses
import json
import pydoc_data.topics
from typing import Any

import numpy as np
import pytest

import layouts
from layouts.checkpoints import load
from layouts.models.config import ModelConfig

from .smollm2 import NEW_TOKENS, STORED, folder, tokenizer

STORED_TOKENS = json.loads(STORED.read_text())
LENGTHS = np.array([len(prompt) for prompt in STORED_TOKENS["prompts"]], np.int32)


def padded_at_end(rows: list[list[int]]) -> np.ndarray:
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens


def config() -> ModelConfig:
    """With 12 heads, which y and z divide, instead of 9."""
    return dataclasses.replace(layouts.config_from_hf(folder()), padded_heads=12)


def parameters(mesh: Any, dtype: str, weights: str = "plain") -> Any:
    return load(folder(), mesh, config=config(), dtype=dtype, weights=weights)


def scores(mesh: Any, params: Any, tokens: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(layouts.score(config(), mesh, params, tokens, **options), np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tokens_of_transformers(dtype: str, mesh_of: Any) -> None:
    """In bfloat16, of the first prompts, whose tokens rounding does not change."""
    mesh, wanted = mesh_of((2, 2, 2), "xyz"), STORED_TOKENS[dtype]
    tokens, _ = layouts.generate(
        config(),
        mesh,
        parameters(mesh, dtype),
        padded_at_end(STORED_TOKENS["prompts"][: len(wanted)]),
        max_new_tokens=NEW_TOKENS,
        lengths=LENGTHS[: len(wanted)],
    )
    np.testing.assert_array_equal(tokens, wanted)


@pytest.mark.exhaustive
def test_answers_are_as_likely_when_rounded(mesh_of: Any) -> None:
    """The mean log-probability of the tokens that transformers draws in float32."""
    mesh = mesh_of((2, 2, 2), "xyz")
    both = zip(STORED_TOKENS["prompts"], STORED_TOKENS["float32"], strict=True)
    tokens = padded_at_end([prompt + answer for prompt, answer in both])
    lengths = LENGTHS + NEW_TOKENS

    def mean(dtype: str, weights: str = "plain") -> float:
        found = scores(mesh, parameters(mesh, dtype, weights), tokens, lengths=lengths)
        return float(
            np.mean([row[n - NEW_TOKENS : n] for row, n in zip(found, lengths, strict=True)])
        )

    wanted = mean("float32")
    assert abs(mean("bfloat16") - wanted) < 2e-3
    # The rounding of 8 bits is seen, and is small.
    assert 2e-3 < abs(mean("bfloat16", "int8") - wanted) < 2e-2


@pytest.mark.exhaustive
def test_perplexity_in_int8(mesh_of: Any) -> None:
    """Of int8 matrices within 1% of that in bfloat16, and with int8 activations as well within 4%, of
    more than 10,000 tokens of Python's own documents."""
    mesh = mesh_of((2, 2, 2), "xyz")
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    tokens = np.array(tokenizer()(text)["input_ids"][: 40 * 256], np.int32).reshape(40, 256)

    def perplexity(weights: str, *, int8_activations: bool = False) -> float:
        params = parameters(mesh, "bfloat16", weights)
        model = dataclasses.replace(config(), int8_activations=int8_activations)
        found = [
            np.asarray(layouts.score(model, mesh, params, part), np.float64)[:, 1:]
            for part in np.split(tokens, 5)
        ]
        return float(np.exp(-np.mean(found)))

    plain, rounded = perplexity("plain"), perplexity("int8")
    narrow = perplexity("int8", int8_activations=True)
    print(
        f"perplexity {plain:.3f} in bfloat16, {rounded:.3f} with int8 matrices, {narrow:.3f} all int8"
    )
    assert plain < rounded < 1.01 * plain
    assert rounded < narrow < 1.04 * plain
