"""Rotary scalings that depend on the room of a cache, against transformers on sequences that fill it.

transformers looks at the length of what it is given, so its sequences are padded to the room.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.checkpoints import load

from .models import logits_of, make, save
from .test_families import BATCH, LENGTH, LENGTHS, STEPS, compare, decoded

ROOM = 12
SHORT, LONG = [1.0, 1.1, 1.2, 1.5], [1.0, 2.0, 3.0, 8.0]
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": SHORT,
    "long_factor": LONG,
}


def longrope(original: int) -> dict[str, Any]:
    fields = {"rope_parameters": LONGROPE, "original_max_position_embeddings": original}
    return fields | {"max_position_embeddings": 64}


def dynamic(positions: int) -> dict[str, Any]:
    scaling = {"rope_type": "dynamic", "rope_theta": 100.0, "factor": 4.0}
    return {"rope_parameters": scaling, "max_position_embeddings": positions}


CASES = {
    "dynamic, long": ("llama", dynamic(ROOM - 5)),
    "dynamic, short": ("llama", dynamic(ROOM)),
    "longrope, long": ("phi3", longrope(ROOM - 1)),
    "longrope, short": ("phi3", longrope(ROOM)),
}


@pytest.mark.parametrize("case", CASES)
def test_as_transformers_on_full_caches(mesh_of: Any, tmp_path: Path, case: str) -> None:
    model = make(*CASES[case])
    save(model, tmp_path)
    config, mesh = layouts.config_from_hf(tmp_path), mesh_of((2, 2, 1), "xyz")
    prompts = np.random.default_rng(0).integers(0, config.vocab, (BATCH, LENGTH)).astype(np.int32)
    wanted, drawn = np.zeros((STEPS, BATCH, config.vocab)), np.zeros((STEPS, BATCH), np.int32)
    for row, length in enumerate(LENGTHS):
        tokens = np.zeros((ROOM,), np.int32)
        tokens[:length] = prompts[row, :length]
        for step in range(STEPS):
            wanted[step, row] = logits_of(model, tokens[None])[0, length + step - 1]
            drawn[step, row] = wanted[step, row].argmax()
            tokens[length + step] = drawn[step, row]
    params = load(tmp_path, mesh, dtype=jnp.float32)
    found = decoded(
        lambda: reference.prefill(params, config, jnp.asarray(prompts), jnp.asarray(LENGTHS), ROOM),
        lambda tokens, cache: reference.decode_step(params, config, jnp.asarray(tokens), cache),
        drawn,
    )
    compare(found, wanted, config.vocab)
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, dtype=jnp.float32)
    found = decoded(
        lambda: layouts.prefill(config, mesh, params, cache, prompts, lengths=LENGTHS),
        lambda tokens, cache: layouts.decode_step(config, mesh, params, cache, tokens),
        drawn,
    )
    compare(found, wanted, config.vocab)
