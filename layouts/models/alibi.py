"""The slopes of ALiBi (arXiv 2108.12409): a penalty of each key by its distance, without parameters."""

from __future__ import annotations

import math

import numpy as np

from .config import ModelConfig


def alibi_slopes(config: ModelConfig) -> np.ndarray:
    """The slope of each stored query head, [stored heads] float32, 0 in padded ones; times `alibi`.

    Those of 2**n heads are 2**(-8 i / 2**n) for i from 1. Where there are more heads, every other slope
    of 2**(n + 1) heads follows.
    """
    assert config.alibi is not None
    first = 2 ** math.floor(math.log2(config.heads))
    more = config.heads - first
    exponents = [*(-8 * i / first for i in range(1, first + 1))]
    exponents += [-4 * i / first for i in range(1, 2 * more, 2)]
    slopes = np.zeros((config.stored_heads,), np.float32)
    slopes[np.array(config.real_heads)] = config.alibi * np.exp2(exponents)
    return slopes
