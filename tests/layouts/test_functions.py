"""The pointwise functions against float64 numpy, and what makes them safe to use in parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layouts import reference
from layouts.models.config import Activation, ModelConfig, Rotary
from layouts.models.functions import (
    LOG2_E,
    activate,
    base2_scores,
    causal_mask,
    feedforward_hidden,
    rotary_tables,
    rotate,
    softmax_base2,
    swish,
    wide,
)
from layouts.models.named_models import TINY_MULTIHEAD, TINY_MULTIQUERY
from layouts.models.norms import joined_moments, norm_factors, norm_moments, normalize

from .models import name

EXACT: dict[Activation, Callable[[float], float]] = {
    "silu": lambda x: x / (1 + math.exp(-x)),
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: max(x, 0.0),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_wide_is_float32_or_wider() -> None:
    assert wide(jnp.bfloat16) == wide(jnp.float16) == wide(jnp.float32) == jnp.float32
    assert wide(np.float64) == np.float64


@pytest.mark.parametrize("activation", EXACT)
def test_activations(activation: Activation) -> None:
    x = np.concatenate([normal(200) * 4, [0.0, -100.0, 100.0]]).astype(np.float32)
    expected = np.array([EXACT[activation](float(v)) for v in x])
    np.testing.assert_allclose(activate(jnp.asarray(x), activation), expected, rtol=2e-5, atol=2e-6)
    narrow = activate(jnp.asarray(x, jnp.bfloat16), activation)
    assert narrow.dtype == jnp.bfloat16


def test_swish_in_base_2_is_swish() -> None:
    x = jnp.asarray(normal(1000) * 10)
    np.testing.assert_allclose(swish(x), jax.nn.silu(x), rtol=2e-6, atol=1e-7)
    np.testing.assert_array_equal(swish(jnp.float32([-1e30, 1e30])), jnp.float32([0.0, 1e30]))


def test_the_gate_is_activated_and_the_product_rounded_once() -> None:
    inner, gate = jnp.asarray(normal(500), jnp.bfloat16), jnp.asarray(normal(500, seed=1))
    gate = gate.astype(jnp.bfloat16)
    exact = np.array([EXACT["silu"](v) for v in gate.tolist()]) * inner.tolist()
    found = feedforward_hidden(inner, gate, "silu")
    np.testing.assert_array_equal(found, exact.astype(np.float32).astype(jnp.bfloat16))
    np.testing.assert_array_equal(
        feedforward_hidden(inner, None, "relu"), np.maximum(np.float32(inner), 0)
    )


@pytest.mark.parametrize("config", [TINY_MULTIQUERY, TINY_MULTIHEAD], ids=name)
def test_norms(config: ModelConfig) -> None:
    x, weights = normal(3, 5, 32) * 3 + 1, {"scale": normal(32, seed=1)}
    if config.norm_bias:
        weights["bias"] = normal(32, seed=2)
    wide_x = x.astype(np.float64)
    if config.norm == "layernorm":
        wide_x = wide_x - wide_x.mean(-1, keepdims=True)
    deviation = np.sqrt((wide_x**2).mean(-1, keepdims=True) + config.norm_epsilon)
    expected = wide_x / deviation * weights["scale"] + weights.get("bias", 0)
    given = {key: jnp.asarray(w) for key, w in weights.items()}
    found = normalize(jnp.asarray(x), given, config)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    # A row in slices, whose moments are joined.
    slices = jnp.asarray(x).reshape(*x.shape[:-1], 4, 8)
    parts = jnp.moveaxis(norm_moments(slices, config.norm), -2, 0)
    moments = parts.sum(0) if config.norm == "rmsnorm" else joined_moments(parts, 8)
    tail = normalize(slices[..., 3, :], {k: w[24:] for k, w in given.items()}, config, moments)
    np.testing.assert_allclose(tail, expected[..., 24:], rtol=1e-5, atol=1e-5)


def test_an_rmsnorm_can_be_finished_after_a_matmul() -> None:
    x, scale, w = jnp.asarray(normal(4, 32)), jnp.asarray(normal(32, seed=1)), normal(32, 6, seed=2)
    _, inverse = norm_factors(norm_moments(x, "rmsnorm"), "rmsnorm", 32, 1e-6)
    before = normalize(x, {"scale": scale}, TINY_MULTIQUERY) @ w
    np.testing.assert_allclose((x * scale) @ w * inverse, before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [0.0, 1e2, 1e3, 1e4])
def test_a_layernorm_keeps_what_deviates_little_from_a_large_mean(mean: float) -> None:
    """By its deviations, of slices too; E[x^2] - E[x]^2 has an error of 0.1 where the mean is 1000."""
    x = np.float32(mean + normal(4, 256))
    truth = np.float64(x) - np.float64(x).mean(-1, keepdims=True)
    truth /= np.sqrt((truth**2).mean(-1, keepdims=True) + 1e-6)
    config = dataclasses.replace(TINY_MULTIHEAD, d_model=256)
    weights = {"scale": jnp.ones(256), "bias": jnp.zeros(256)}
    slices = jnp.moveaxis(jnp.asarray(x).reshape(4, 8, 32), 1, 0)
    moments = joined_moments(norm_moments(slices, "layernorm"), 32)
    tolerance = 1e-5 + mean * 1e-6
    for found in (
        normalize(jnp.asarray(x), weights, config),
        normalize(jnp.asarray(x), weights, config, moments),
        reference.normalize(jnp.asarray(x), "layernorm", weights, config),
    ):
        assert np.abs(np.asarray(found) - truth).max() < tolerance


def test_a_constant_row_has_a_finite_layernorm() -> None:
    x = jnp.full((1, 32), 1000.1, jnp.float32)
    config = dataclasses.replace(TINY_MULTIHEAD, norm_epsilon=1e-12)
    y = normalize(x, {"scale": jnp.ones(32), "bias": jnp.zeros(32)}, config)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_rotary_turns_each_pair(interleaved: bool, fraction: float) -> None:
    rotary = Rotary(base=100.0, fraction=fraction, interleaved=interleaved)
    x, positions = normal(2, 3, 2, 8), np.array([[0, 1, 2], [7, 8, 1000]])
    dims = round(8 * fraction)
    expected = x.astype(np.complex128)
    for pair in range(dims // 2):
        one, two = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + dims // 2)
        angle = positions * 100.0 ** (-2 * pair / dims)
        turned = (x[..., one] + 1j * x[..., two]) * np.exp(1j * angle)[:, :, None]
        expected[..., one], expected[..., two] = turned.real, turned.imag
    tables = rotary_tables(jnp.asarray(positions), rotary, 8)
    found = rotate(jnp.asarray(x), tables, rotary)
    np.testing.assert_allclose(found, expected.real, atol=2e-4)
    np.testing.assert_array_equal(found[0, 0], x[0, 0])


def test_no_rotary_changes_nothing() -> None:
    x = jnp.asarray(normal(2, 3, 2, 8))
    np.testing.assert_array_equal(rotate(x, None, None), x)


def test_rotated_scores_depend_on_the_distance_only() -> None:
    rotary, q, k = (
        Rotary(),
        jnp.asarray(normal(1, 1, 1, 8)),
        jnp.asarray(normal(1, 1, 1, 8, seed=1)),
    )

    def score(query: int, key: int) -> float:
        a, b = (
            rotate(x, rotary_tables(jnp.array([[p]]), rotary, 8), rotary)
            for x, p in ((q, query), (k, key))
        )
        return float(jnp.sum(a * b))

    assert score(12, 5) == pytest.approx(score(107, 100), rel=1e-4)
    assert score(12, 5) != pytest.approx(score(12, 6), rel=1e-2)


def test_softmax_in_base_2_is_the_same_distribution() -> None:
    scores, config = normal(4, 50) * 10, dataclasses.replace(TINY_MULTIQUERY, d_head=16)
    for scale, cap in ((None, None), (0.5, None), (0.5, 3.0)):
        capped = dataclasses.replace(config, attention_scale=scale, attention_cap=cap)
        scaled = np.float64(scores) * (scale or 1 / 4)
        expected = np.exp(cap * np.tanh(scaled / cap) if cap else scaled)
        expected /= expected.sum(-1, keepdims=True)
        found = softmax_base2(base2_scores(jnp.asarray(scores), capped))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)
    assert pytest.approx(math.log2(math.e)) == LOG2_E


def test_softmax_of_what_is_visible() -> None:
    scores = jnp.asarray(normal(3, 4))
    visible = jnp.array([[True] * 4, [False, True, True, False], [False] * 4])
    found = softmax_base2(scores, visible)
    np.testing.assert_array_equal(found[2], np.zeros(4))
    np.testing.assert_allclose(found[1, 1:3], softmax_base2(scores[1, 1:3]), rtol=1e-6)
    np.testing.assert_allclose(found.sum(-1), [1, 1, 0], rtol=1e-6)


def test_causal_mask() -> None:
    mask = causal_mask(jnp.array([[2, 3], [0, 1]]), jnp.arange(5), jnp.array([4, 1]))
    np.testing.assert_array_equal(
        mask,
        np.array([[[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]], [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]], bool),
    )
