"""What positions do in `reference`, apart from the rotary embedding itself: written for it alone."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from .models.config import ModelConfig, Rotary
from .models.rotary import DividedScaling, DynamicScaling, LongRopeScaling


def penalties(positions: jax.Array, places: jax.Array, config: ModelConfig) -> jax.Array:
    """Distances of keys at `places` [S] from queries at `positions` [B, L], times the slope of each head
    by ALiBi (arXiv 2108.12409), [B, H, L, S]; padded heads have none."""

    def slopes(heads: int) -> list[float]:
        power = 1 << (heads.bit_length() - 1)
        if power == heads:
            return [(2.0 ** (-8 / heads)) ** (i + 1) for i in range(heads)]
        return slopes(power) + slopes(2 * power)[::2][: heads - power]

    rows = iter(slopes(config.heads))
    every = [next(rows) * (config.alibi or 0.0) if real else 0.0 for real in config.real_heads]
    distances = (positions[:, None, :, None] - places).astype(jnp.float32)
    return jnp.asarray(every, jnp.float32)[:, None, None] * distances


def rotary_for(rotary: Rotary, d_head: int, room: int) -> Rotary:
    """The rotary embedding, with a divisor of each frequency where its scaling depends on the room."""
    scaling, dims = rotary.scaling, rotary.dims(d_head)
    if isinstance(scaling, LongRopeScaling):
        divisors = scaling.short if room <= scaling.original_positions else scaling.long
        divided = DividedScaling(divisors, scaling.attention_factor)
    elif isinstance(scaling, DynamicScaling) and room > scaling.original_positions:
        # base ** -(2 i / dims) of a base that is g ** (dims / (dims - 2)) times as large.
        grown = 1 + scaling.factor * (room / scaling.original_positions - 1)
        pairs = np.arange(dims // 2)
        divided = DividedScaling((grown ** (2 * pairs / (dims - 2))).tolist())
    else:
        divided = None if isinstance(scaling, DynamicScaling) else scaling
    return dataclasses.replace(rotary, scaling=divided)
