"""Heads added to a checkpoint: where they stand, and what is refused."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layouts.models.head_padding import pad_heads
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED
from layouts.models.param_checks import check_params
from layouts.models.params import init, quantize


def test_pad_heads_puts_each_head_in_its_group() -> None:
    padded = dataclasses.replace(TINY_GROUPED, heads=6, padded_heads=8)
    bare = dataclasses.replace(padded, padded_heads=None)
    params = init(jax.random.key(0), bare, jnp.float32)
    found = pad_heads(params, padded)
    check_params(found, padded)
    w_q = np.asarray(params["blocks"]["w_q"])
    d = padded.d_head
    zero = np.zeros_like(w_q[:, :, :d])
    np.testing.assert_array_equal(
        found["blocks"]["w_q"],
        np.concatenate([w_q[:, :, : 3 * d], zero, w_q[:, :, 3 * d :], zero], axis=2),
    )
    np.testing.assert_array_equal(found["blocks"]["w_kv"], params["blocks"]["w_kv"])


def test_pad_heads_refuses_what_has_other_heads() -> None:
    params = init(jax.random.key(0), TINY_PADDED, jnp.float32)
    with pytest.raises(ValueError, match=r"blocks/w_q must be a floating array with 6 heads"):
        pad_heads(params, TINY_PADDED)
    bare = dataclasses.replace(TINY_PADDED, padded_heads=None)
    small = quantize(init(jax.random.key(0), bare, jnp.float32))
    with pytest.raises(ValueError, match=r"pad first, then quantize"):
        pad_heads(small, TINY_PADDED)
