"""Random logits, and draws from them."""

from __future__ import annotations

import jax
import numpy as np

from layouts.sampling.sampling import sample

VOCAB = 48
draw = jax.jit(sample)


def normal(*shape: int, seed: int = 0, scale: float = 2.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
