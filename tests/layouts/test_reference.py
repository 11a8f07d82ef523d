"""The reference decoder against loops in float64 numpy, and against itself cut another way."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layouts import reference
from layouts.models.config import ModelConfig
from layouts.models.head_padding import pad_heads
from layouts.models.named_models import (
    TINY_GROUPED,
    TINY_MULTIHEAD,
    TINY_MULTIQUERY,
    TINY_PADDED,
)
from layouts.models.params import Params, init, quantize
from layouts.sampling.sampling import Sampling

from .models import TINY, name, prompts

pytestmark = pytest.mark.slow

LENGTHS = np.array([6, 3, 1], np.int32)


def parameters(config: ModelConfig, dtype: Any = jnp.float32) -> Params:
    return init(jax.random.key(0), config, dtype)


def by_loops(params: Any, config: ModelConfig, tokens: list[int]) -> np.ndarray:
    """Logits [vocab] after the last token of one sequence: a token and a head at a time, float64."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    acts: dict[str, Callable[[float], float]] = {
        "silu": lambda v: v / (1 + math.exp(-v)),
        "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2,
        "gelu_tanh": lambda v: v / (1 + math.exp(-math.sqrt(8 / math.pi) * (v + 0.044715 * v**3))),
        "relu": lambda v: max(v, 0.0),
    }

    def norm(x: np.ndarray, w: Any) -> np.ndarray:
        x = x - x.mean() if config.norm == "layernorm" else x
        return x / math.sqrt((x * x).mean() + config.norm_epsilon) * w["scale"] + w.get("bias", 0)

    def turn(x: np.ndarray, position: int) -> np.ndarray:
        x, dims = x.copy(), config.rotary_dims
        for i in range(dims // 2):
            assert config.rotary is not None
            a, b = (2 * i, 2 * i + 1) if config.rotary.interleaved else (i, i + dims // 2)
            z = complex(x[a], x[b]) * np.exp(1j * position * config.rotary.base ** (-2 * i / dims))
            x[a], x[b] = z.real, z.imag
        return x

    def columns(head: int) -> slice:
        return slice(head * config.d_head, (head + 1) * config.d_head)

    def attention(ys: list[np.ndarray], p: Any) -> list[np.ndarray]:
        out = [np.zeros(config.d_model) + p.get("b_o", 0) for _ in ys]
        for head in (h for h, real in enumerate(config.real_heads) if real):
            kv = head // config.queries_per_kv
            q, k, v = (
                [y @ p["w_" + s][:, at] + p.get("b_" + s, np.zeros(999))[at] for y in ys]
                for s, at in (
                    ("q", columns(head)),
                    ("kv", columns(2 * kv)),
                    ("kv", columns(2 * kv + 1)),
                )
            )
            q, k = ([turn(y, i) for i, y in enumerate(turned)] for turned in (q, k))
            for i in range(len(ys)):
                s = np.exp([q[i] @ k[j] / math.sqrt(config.d_head) for j in range(i + 1)])
                o = sum(a * b for a, b in zip(s / s.sum(), v, strict=False))
                out[i] += o @ p["w_o"][columns(head)]
        return out

    def feedforward(y: np.ndarray, p: Any) -> np.ndarray:
        inner = y @ p["w_in"] + p.get("b_in", 0)
        act = acts[config.activation]
        if config.gated:
            inner = inner * [act(v) for v in y @ p["w_gate"] + p.get("b_gate", 0)]
        else:
            inner = np.array([act(v) for v in inner])
        return inner @ p["w_out"] + p.get("b_out", 0)

    xs = [params["embedding"][t] for t in tokens]
    for layer in range(config.layers):
        p = jax.tree.map(lambda x, layer=layer: x[layer], params["blocks"])
        ys = [norm(x, p["norm"]) for x in xs]
        middle = [x + a for x, a in zip(xs, attention(ys, p), strict=True)]
        if config.block == "serial":
            ys = [norm(x, p["norm_ffn"]) for x in middle]
        xs = [x + feedforward(y, p) for x, y in zip(middle, ys, strict=True)]
    table = params["embedding" if config.tied_embedding else "unembedding"]
    return table @ norm(xs[-1], params["final_norm"])


@pytest.mark.parametrize("config", TINY, ids=name)
def test_prefill_is_the_loops(config: ModelConfig) -> None:
    params, tokens = parameters(config), prompts(config)
    logits, cache = reference.prefill(params, config, tokens, jnp.asarray(LENGTHS), 8)
    for row, length in enumerate(LENGTHS):
        expected = by_loops(params, config, tokens[row, :length].tolist())
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(cache["lengths"], LENGTHS)


@pytest.mark.parametrize("config", TINY, ids=name)
def test_in_one_piece_in_chunks_and_token_by_token(config: ModelConfig) -> None:
    params, tokens = parameters(config), prompts(config)
    whole = jnp.full((3,), 6, jnp.int32)
    expected, full = reference.prefill(params, config, tokens, whole, 8)

    cache = reference.empty_cache(config, 3, 8, jnp.float32)
    _, cache = reference.extend(params, config, tokens[:, :4], cache, jnp.array([4, 3, 1]))
    # The second chunk starts where each sequence stands, with its padding at the end.
    late = np.zeros((3, 5), np.int32)
    for row, start in enumerate((4, 3, 1)):
        late[row, : 6 - start] = tokens[row, start:]
    logits, cache = reference.extend(params, config, jnp.asarray(late), cache, jnp.array([2, 3, 5]))
    last = logits[jnp.arange(3), jnp.array([1, 2, 4])]
    np.testing.assert_allclose(last, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), cache, full)

    cache = reference.empty_cache(config, 3, 8, jnp.float32)
    for i in range(6):
        step, cache = reference.decode_step(params, config, tokens[:, i], cache)
    np.testing.assert_allclose(step, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), cache, full)


def test_padding_tokens_leave_no_trace() -> None:
    config = TINY_GROUPED
    params, tokens = parameters(config), prompts(config)
    other = jnp.where(jnp.arange(6) < LENGTHS[:, None], tokens, (tokens + 1) % config.vocab)
    one = reference.prefill(params, config, tokens, jnp.asarray(LENGTHS), 8)
    two = reference.prefill(params, config, other, jnp.asarray(LENGTHS), 8)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert not np.any(one[1]["k"][:, 2, 1:])


def test_padded_heads_contribute_exactly_nothing() -> None:
    bare = dataclasses.replace(TINY_PADDED, padded_heads=None)
    params, tokens = parameters(bare), prompts(bare)
    padded = pad_heads(params, TINY_PADDED)
    # Whatever a padded query computes, its output matrix is zero.
    q = padded["blocks"]["w_q"].at[:, :, 6 * TINY_PADDED.d_head :].set(100.0)
    wild = padded | {"blocks": padded["blocks"] | {"w_q": q}}
    lengths = jnp.asarray(LENGTHS)
    expected, _ = reference.prefill(params, bare, tokens, lengths, 8)
    found, _ = reference.prefill(padded, TINY_PADDED, tokens, lengths, 8)
    same, _ = reference.prefill(wild, TINY_PADDED, tokens, lengths, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, same)


def test_a_group_shares_its_key_value_head() -> None:
    many = dataclasses.replace(TINY_GROUPED, kv_heads=TINY_GROUPED.heads)
    params, tokens = parameters(TINY_GROUPED), prompts(TINY_GROUPED)
    by_head = params["blocks"]["w_kv"].reshape(2, many.d_model, -1, 2 * many.d_head)
    repeated = jnp.repeat(by_head, 4, axis=2).reshape(2, many.d_model, -1)
    every = params | {"blocks": params["blocks"] | {"w_kv": repeated}}
    lengths = jnp.asarray(LENGTHS)
    expected, _ = reference.prefill(every, many, tokens, lengths, 8)
    found, _ = reference.prefill(params, TINY_GROUPED, tokens, lengths, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_int8_weights_are_what_they_stand_for() -> None:
    params, tokens = parameters(TINY_MULTIHEAD), prompts(TINY_MULTIHEAD)
    small = quantize(params)
    plain = jax.tree.map(
        lambda x: x.dequantize() if hasattr(x, "dequantize") else x,
        small,
        is_leaf=lambda x: hasattr(x, "dequantize"),
    )
    lengths = jnp.asarray(LENGTHS)
    expected, _ = reference.prefill(plain, TINY_MULTIHEAD, tokens, lengths, 8)
    found, _ = reference.prefill(small, TINY_MULTIHEAD, tokens, lengths, 8)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    exact, _ = reference.prefill(params, TINY_MULTIHEAD, tokens, lengths, 8)
    assert np.abs(np.asarray(found - exact)).max() > 1e-4


def test_float64_throughout_and_bfloat16_near_it() -> None:
    config, tokens = TINY_MULTIQUERY, np.asarray(prompts(TINY_MULTIQUERY))
    narrow = parameters(config, jnp.bfloat16)
    logits, cache = reference.prefill(narrow, config, jnp.asarray(tokens), jnp.asarray(LENGTHS), 8)
    assert logits.dtype == jnp.float32
    assert cache["k"].dtype == jnp.bfloat16
    host = jax.tree.map(lambda x: np.asarray(x.astype(jnp.float32)).astype(np.float64), narrow)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, host)
        exact, _ = reference.prefill(params, config, jnp.asarray(tokens), jnp.asarray(LENGTHS), 8)
        assert exact.dtype == jnp.float64
        exact = np.asarray(exact)
    for row, length in enumerate(LENGTHS):
        expected = by_loops(host, config, tokens[row, :length].tolist())
        np.testing.assert_allclose(exact[row], expected, rtol=1e-10, atol=1e-10)
    error = np.linalg.norm(np.asarray(logits) - exact) / np.linalg.norm(exact)
    # bfloat16 keeps 8 bits, and a dozen roundings follow each other.
    assert 2**-12 < error < 12 * 2**-8


def test_greedy_generation_takes_the_largest_logit() -> None:
    config = TINY_PADDED
    params, tokens = parameters(config), prompts(config)
    found, counts = reference.generate(
        params, config, tokens, jnp.asarray(LENGTHS), max_new_tokens=4
    )
    np.testing.assert_array_equal(counts, [4, 4, 4])
    for row, length in enumerate(LENGTHS):
        sequence = tokens[row, :length].tolist()
        for step in range(4):
            assert found[row, step] == np.argmax(by_loops(params, config, sequence))
            sequence.append(int(found[row, step]))


def test_a_sequence_ends_with_its_end_token() -> None:
    config = TINY_PADDED
    params, tokens, lengths = parameters(config), prompts(config), jnp.asarray(LENGTHS)
    free, _ = reference.generate(params, config, tokens, lengths, max_new_tokens=5)
    end = int(free[0, 2])
    found, counts = reference.generate(
        params, config, tokens, lengths, max_new_tokens=5, end_tokens=[end], pad_token=-1
    )
    for row in range(3):
        drawn = free[row].tolist()
        count = drawn.index(end) + 1 if end in drawn else 5
        assert counts[row] == count
        assert found[row].tolist() == drawn[:count] + [-1] * (5 - count)
    assert counts[0] < 5


def test_a_draw_does_not_depend_on_the_neighbours() -> None:
    config = TINY_MULTIQUERY
    params, tokens, lengths = parameters(config), prompts(config), jnp.asarray(LENGTHS)
    sampling, seeds = Sampling(temperature=1.0), jnp.array([5, 6, 7])
    together, _ = reference.generate(
        params, config, tokens, lengths, max_new_tokens=6, sampling=sampling, seeds=seeds
    )
    for row, length in enumerate(LENGTHS):
        alone, _ = reference.generate(
            params,
            config,
            tokens[row : row + 1, :length],
            lengths[row : row + 1],
            max_new_tokens=6,
            sampling=sampling,
            seeds=seeds[row : row + 1],
        )
        np.testing.assert_array_equal(alone[0], together[row])
    assert len({tuple(row) for row in together}) == 3
