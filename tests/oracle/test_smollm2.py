"""A real model from its GGUF file: SmolLM2-135M-Instruct on 2 x 2 x 2 devices, against transformers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np

import layouts
from layouts.checkpoints import load
from layouts.models.config import ModelConfig

from .smollm2 import NEW_TOKENS, STORED, folder

STORED_TOKENS = json.loads(STORED.read_text())
LENGTHS = np.array([len(prompt) for prompt in STORED_TOKENS["prompts"]], np.int32)


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
