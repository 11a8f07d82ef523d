"""What the tests of this folder share: the tiny models, and random prompts."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    TINY_GEGLU,
    TINY_GROUPED,
    TINY_MULTIHEAD,
    TINY_MULTIQUERY,
    TINY_PADDED,
    TINY_RELU,
)

TINY = (TINY_MULTIQUERY, TINY_PADDED, TINY_GROUPED, TINY_MULTIHEAD, TINY_GEGLU, TINY_RELU)


def name(value: object) -> str:
    """The id of a parameter of tests: of a model, its name."""
    return value.name if isinstance(value, ModelConfig) else str(value)


def prompts(config: ModelConfig, batch: int = 3, length: int = 6, seed: int = 0) -> jax.Array:
    """Random tokens [batch, length] int32."""
    return jax.random.randint(
        jax.random.key(seed), (batch, length), 0, config.vocab, dtype=jnp.int32
    )
