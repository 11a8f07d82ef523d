"""Attention over segments, in blocks or not, against one plain softmax."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
from layouts import tuning
from layouts.layers.attention_scores import Segment
from layouts.layers.attention_scores import attend as attend_scaled
from layouts.models.cache import Entries
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED

pytestmark = pytest.mark.slow

B, T, H, D, PAST, PREFIX = 3, 12, 4, 8, 5, 2
LENGTHS = np.array([5, 0, 3], np.int32)
CONFIG = dataclasses.replace(TINY_GROUPED, d_head=D)
CAPPED = dataclasses.replace(CONFIG, attention_scale=0.8, attention_cap=1.5)


def attend(q: jax.Array, segments: list[Segment], config: ModelConfig = CONFIG) -> jax.Array:
    return attend_scaled(q, segments, config)


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def everything(kv_heads: int) -> tuple[jax.Array, list[Segment]]:
    """Queries, and a chunk, a past and a prefix for them to see."""
    k = kv_heads
    chunk = Segment(draw(1, B, k, T, D), draw(2, B, k, T, D), causal=True)
    past = Segment(draw(3, B, k, PAST, D), draw(4, B, k, PAST, D), lengths=jnp.asarray(LENGTHS))
    prefix = Segment(draw(5, k, PREFIX, D), draw(6, k, PREFIX, D))
    return draw(0, B, T, H, D), [chunk, past, prefix]


def by_hand(q: Any, segments: list[Segment], config: ModelConfig = CONFIG) -> np.ndarray:
    """One query at a time, in float64."""
    q = np.asarray(q, np.float64)
    out = np.zeros(q.shape)
    for b in range(B):
        for t in range(T):
            for h in range(H):
                keys, values = [], []
                for s in segments:
                    k, v = (np.asarray(x, np.float64) for x in (s.keys, s.values))
                    k, v = (x[b] if x.ndim == 4 else x for x in (k, v))
                    kv = h * k.shape[0] // H
                    seen = t + 1 if s.causal else k.shape[1]
                    seen = seen if s.lengths is None else int(s.lengths[b])
                    keys.append(k[kv, :seen])
                    values.append(v[kv, :seen])
                scores = np.concatenate(keys) @ q[b, t, h] * (config.attention_scale or D**-0.5)
                cap = config.attention_cap
                e = np.exp(cap * np.tanh(scores / cap) if cap else scores)
                out[b, t, h] = e @ np.concatenate(values) / e.sum()
    return out


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
# All queries at once; blocks of several; a block for each; and blocks that do not divide.
@pytest.mark.parametrize("rows", [T, 4, 1, 5])
def test_equals_one_softmax(monkeypatch: pytest.MonkeyPatch, rows: int, kv_heads: int) -> None:
    row_bytes = B * H * (T + PAST + PREFIX) * 4
    monkeypatch.setattr(tuning, "SCORES_BYTES", rows * row_bytes)
    q, segments = everything(kv_heads)
    found = jax.jit(lambda q: attend(q, segments))(q)
    np.testing.assert_allclose(found, by_hand(q, segments), rtol=2e-5, atol=2e-6)


def test_scores_of_all_queries_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    length, block = 256, 16
    monkeypatch.setattr(tuning, "SCORES_BYTES", block * H * length * 4)
    q = jax.ShapeDtypeStruct((1, length, H, D), jnp.float32)
    kv = jax.ShapeDtypeStruct((1, 1, length, D), jnp.float32)

    def run(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, [Segment(k, v, causal=True)])

    memory: Any = jax.jit(run).lower(q, kv, kv).compile().memory_analysis()
    # Scores, their exponentials, and copies of the queries.
    assert memory.temp_size_in_bytes < 4 * block * H * length * 4 + 4 * H * length * D * 4
    assert memory.temp_size_in_bytes < length * H * length * 4 / 2


@pytest.mark.parametrize("config", [CONFIG, CAPPED], ids=["plain", "capped"])
def test_int8_keys_and_values(config: ModelConfig) -> None:
    q, (chunk, past, prefix) = everything(2)

    def quantized(segment: Segment) -> tuple[Segment, Segment]:
        """A segment with scales, and the same written out."""
        parts = [ce.quantize(x, -1) for x in (segment.keys, segment.values)]
        k, v = (Entries(p.values, p.scale[..., 0]) for p in parts)
        how = {"lengths": segment.lengths, "causal": segment.causal}
        plain = Segment(parts[0].dequantize(), parts[1].dequantize(), **how)
        return Segment(k.values, v.values, k.scale, v.scale, **how), plain

    pairs = [quantized(each) for each in (chunk, past, prefix)]
    found, wanted = (
        f(q, [pair[i] for pair in pairs], config) for i, f in enumerate((attend, by_hand))
    )
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scaled", [False, True])
def test_what_stands_behind_lengths_counts_for_nothing(poison: float, scaled: bool) -> None:
    """In results and in gradients; also of positions that all sequences share."""
    q, (chunk, past, prefix) = everything(2)
    shared = Segment(prefix.keys, prefix.values, lengths=jnp.full((B,), PREFIX - 1))

    def spoilt(segment: Segment, with_: float) -> Segment:
        ends = np.asarray(segment.lengths)
        ends = ends[:, None, None] if segment.keys.ndim == 4 else ends[:1]
        behind = np.arange(segment.size) >= ends

        def spoil(x: jax.Array) -> jax.Array:
            where = behind.reshape(*behind.shape, *(1,) * (x.ndim - segment.keys.ndim + 1))
            return jnp.where(where, with_, x)

        k, v = spoil(segment.keys), spoil(segment.values)
        if not scaled:
            return dataclasses.replace(segment, keys=k, values=v)
        scale = spoil(jnp.ones(segment.keys.shape[:-1]))
        integers = [(8 * x).astype(jnp.int8) for x in (segment.keys, segment.values)]
        return Segment(integers[0], integers[1], scale, scale, segment.lengths)

    def run(with_: float) -> Any:
        segments = [chunk, spoilt(past, with_), spoilt(shared, with_)]

        def loss(q: jax.Array, floats: list[Any]) -> jax.Array:
            whole = [
                s if scaled and i else dataclasses.replace(s, keys=f[0], values=f[1])
                for i, (s, f) in enumerate(zip(segments, floats, strict=True))
            ]
            return jnp.sum(attend(q, whole) ** 2)

        floats = [(s.keys.astype(q.dtype), s.values.astype(q.dtype)) for s in segments]
        return attend(q, segments), jax.grad(loss, argnums=(0, 1))(q, floats)

    clean, found = run(0.0), run(poison)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(clean), strict=True):
        assert np.isfinite(other).all()
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)
    with jax.debug_nans(True):
        attend(q, [chunk, spoilt(past, 0.0), spoilt(shared, 0.0)])


def test_bfloat16_sums_in_float32() -> None:
    q, segments = everything(1)
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), (q, [s.keys for s in segments]))
    rounded = [
        Segment(k, s.values.astype(jnp.bfloat16), lengths=s.lengths, causal=s.causal)
        for k, s in zip(narrow[1], segments, strict=True)
    ]
    found = attend(narrow[0], rounded)
    assert found.dtype == jnp.bfloat16
    truth = by_hand(narrow[0].astype(jnp.float32), rounded)
    # One rounding of the probabilities and one of the result, of 8 bits each.
    assert np.abs(np.asarray(found, np.float64) - truth).max() < 2 * 2.0**-8 * np.abs(truth).max()
