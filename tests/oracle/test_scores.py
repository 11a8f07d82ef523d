"""Log-likelihoods of continuations against transformers, of prompts that tokenizers would pad on the
left."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.checkpoints import load

from .models import CASES, make, save, torch

BATCH, LENGTH = 25, 12
CONTINUED = 5
PLACES = [((2, 2, 2), None), ((1, 4, 2), "WS 2D batch, batch xyz"), ((8, 1, 1), "WG XY, batch xyz")]
MODELS = ["llama 3", "gemma2, windows", "cohere, norms", "falcon, new, biases"]


def expected(model: Any, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The log-likelihood of the last tokens of each sequence."""
    found = []
    for row, length in zip(tokens, lengths, strict=True):
        ids = torch.tensor(row[None, :length].astype(np.int64))
        with torch.no_grad():
            logs = torch.log_softmax(model(ids).logits[0].double(), dim=-1)
        places = torch.arange(length - CONTINUED, length)
        found.append(float(logs[places - 1, ids[0, places]].sum()))
    return np.array(found)


@pytest.mark.parametrize("name", MODELS)
def test_as_transformers(mesh_of: Any, tmp_path: Path, name: str) -> None:
    """200 continuations, 50 of each model, in chunks that divide nothing."""
    model = make(*CASES[name])
    save(model, tmp_path)
    shape, plan = PLACES[MODELS.index(name) % len(PLACES)]
    mesh, read = mesh_of(shape, "xyz"), layouts.config_from_hf(tmp_path)
    config = layouts.padded_for(dataclasses.replace(read, padded_vocab=70), mesh)
    params = load(tmp_path, mesh, config=config, dtype=jnp.float32)
    rng = np.random.default_rng(0)
    for _ in range(2):
        tokens = rng.integers(0, read.vocab, (BATCH, LENGTH)).astype(np.int32)
        lengths = rng.integers(CONTINUED + 1, LENGTH + 1, BATCH)
        mask = np.arange(LENGTH) >= LENGTH - lengths[:, None]
        left = np.stack([np.roll(row, LENGTH - n) for row, n in zip(tokens, lengths, strict=True)])
        given: Any = {"chunk": 4, "plan": plan}
        found = layouts.score(config, mesh, params, left, attention_mask=mask, **given)
        unmasked = layouts.score(config, mesh, params, left, **given)
        wanted = expected(model, tokens, lengths)
        assert np.abs(continued(found) - wanted).max() < 1e-3
        assert np.abs(continued(unmasked) - wanted).max() > 0.1


def continued(scores: Any) -> np.ndarray:
    """The log-likelihood of each continuation, of sequences that are padded on the left."""
    return np.asarray(scores)[:, -CONTINUED:].sum(axis=1)
