"""`python -m bench layers` where programs can run: a small decoder, checked and timed for real."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import layouts
from bench.phases import ATTENTIONS, FEEDFORWARDS
from bench.tables import table
from bench.target import Target
from layouts import ModelConfig, Partitioning, reference
from layouts.config import TINY_MULTIQUERY

BATCH, PROMPT, STEPS = 8, 6, 3
# Of the largest logit, in float32: sums are taken in another order than the reference's.
TOLERANCE = 1e-4
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class RunRow:
    """One pair of layouts, run here.

    Attributes:
      feedforward, attention: by name.
      error: of logits after a prefill and some decode steps, over the largest logit.
      prefill_seconds, decode_seconds: measured, the fastest of a few; of the whole small model.
    """

    feedforward: str
    attention: str
    error: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the error is small enough."""
        return self.error <= TOLERANCE


def mesh_of(target: Target) -> jax.sharding.Mesh:
    """x, y and z over all devices that are a power of two, as cubic as that goes."""
    sizes, count = [1, 1, 1], len(target.devices)
    place = 0
    while count % 2 == 0:
        sizes[place % 3] *= 2
        count, place = count // 2, place + 1
    return target.mesh(sizes, ("x", "y", "z"))


def run(target: Target, config: ModelConfig | None = None) -> Iterator[RunRow]:
    """Prefill and some decode steps under every pair of layouts, against the reference; yields each
    pair as it is done."""
    config = config or TINY_MULTIQUERY
    mesh = mesh_of(target)
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, config.vocab, (BATCH, PROMPT + STEPS))
    local = jax.device_get(params)
    prompt = jnp.asarray(tokens[:, :PROMPT], jnp.int32)
    lengths = jnp.full((BATCH,), PROMPT, jnp.int32)
    want, cache = reference.prefill(local, config, prompt, lengths, PROMPT + STEPS)
    for step in range(STEPS):
        want, cache = reference.decode_step(
            local, config, jnp.asarray(tokens[:, PROMPT + step], jnp.int32), cache
        )
    pairs = list(itertools.product(FEEDFORWARDS, ATTENTIONS))
    # On one device they are all the same.
    for feedforward, attention in pairs if mesh.size > 1 else pairs[:1]:
        plan = Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
        found, prefilling, decoding = _steps(config, mesh, params, tokens, plan)
        error = float(np.abs(found - np.asarray(want)).max() / np.abs(want).max())
        yield RunRow(feedforward, attention, error, prefilling, decoding)


def _steps(
    config: ModelConfig, mesh: Any, params: Any, tokens: np.ndarray, plan: Partitioning
) -> tuple[np.ndarray, float, float]:
    """The last logits, and the fastest prefill and decode step."""
    prefills, decodes = [], []
    logits: Any = None
    for _ in range(REPEATS):
        cache = layouts.init_cache(
            config, mesh, BATCH, PROMPT + STEPS, plan=plan, dtype=jnp.float32
        )
        start = time.perf_counter()
        logits, cache = layouts.prefill(config, mesh, params, cache, tokens[:, :PROMPT], plan=plan)
        jax.block_until_ready(logits)
        prefills.append(time.perf_counter() - start)
        for step in range(STEPS):
            start = time.perf_counter()
            logits, cache = layouts.decode_step(
                config, mesh, params, cache, tokens[:, PROMPT + step], plan=plan
            )
            jax.block_until_ready(logits)
            decodes.append(time.perf_counter() - start)
    return np.asarray(logits), min(prefills), min(decodes)


def print_rows(rows: list[RunRow], target: Target) -> str:
    """The rows as a table."""
    head = ("measured", "attention", "error", "prefill ms", "decode ms", "")
    cells = [
        (
            row.feedforward,
            row.attention,
            f"{row.error:.1e}",
            f"{row.prefill_seconds * 1e3:.2f}",
            f"{row.decode_seconds * 1e3:.2f}",
            "" if row.passed else "WRONG",
        )
        for row in rows
    ]
    kind, shape = target.devices[0].device_kind, mesh_of(target).shape
    sides = "x".join(str(shape[axis]) for axis in ("x", "y", "z"))
    return f"a mesh {sides} of {kind}, a small model, in float32\n" + table(head, cells)
