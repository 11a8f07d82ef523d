"""Draws: their distribution, what top-k and top-p leave, ties, and what they must not depend on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from layouts.sampling.sampling import Sampling, gumbel, sample
from layouts.sampling.top_k_top_p import likeliest

from .draws import VOCAB, draw, normal

pytestmark = pytest.mark.slow


def many(logits: np.ndarray, sampling: Sampling, draws: int = 20000) -> np.ndarray:
    """How often each token is drawn from one row of logits, over seeds and positions."""
    rows = jnp.broadcast_to(jnp.asarray(logits), (draws, logits.size))
    numbers = jnp.arange(draws)
    tokens = draw(rows, sampling, seeds=numbers // 100, positions=numbers % 100)
    return np.bincount(np.asarray(tokens), minlength=logits.size)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(np.float64(logits) - np.max(logits))
    return powers / powers.sum()


def kept_by_sorting(
    logits: np.ndarray, temperature: float, top_k: int | None, top_p: float | None
) -> np.ndarray:
    """The tokens left of one row, by sorting; ties to the lowest token."""
    order = np.argsort(-logits, kind="stable")[: top_k or logits.size]
    mass = np.cumsum(softmax(logits[order] / temperature))
    count = order.size if top_p in (None, 1) else 1 + int(np.sum(mass < top_p))
    kept = np.zeros(logits.size, bool)
    kept[order[:count]] = True
    return kept


def assert_drawn_from(counts: np.ndarray, probabilities: np.ndarray) -> None:
    """Pearson's chi-square, five standard deviations above its mean at most."""
    assert not counts[probabilities == 0].any()
    counts, expected = counts[probabilities > 0], probabilities[probabilities > 0] * counts.sum()
    # Rare tokens are counted together: the statistic needs a few expected in each class.
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    freedom = counts.size - 1
    statistic = np.sum((counts - expected) ** 2 / np.maximum(expected, 1))
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_draws_follow_the_softmax(temperature: float) -> None:
    logits = normal(VOCAB)
    counts = many(logits, Sampling(temperature))
    assert_drawn_from(counts, softmax(logits / temperature))


def test_the_statistic_can_fail() -> None:
    # The mistake of reading logits in base 2.
    logits = normal(VOCAB)
    with pytest.raises(AssertionError):
        assert_drawn_from(many(logits, Sampling(1.0)), softmax(logits * np.log(2)))


@pytest.mark.parametrize(("top_k", "top_p"), [(5, None), (None, 0.7), (8, 0.6), (1, None)])
def test_draws_follow_the_softmax_of_what_is_left(top_k: int | None, top_p: float | None) -> None:
    logits = normal(VOCAB)
    kept = kept_by_sorting(logits, 1.5, top_k, top_p)
    counts = many(logits, Sampling(1.5, top_k, top_p))
    assert_drawn_from(counts, np.where(kept, softmax(np.where(kept, logits, -np.inf) / 1.5), 0))


@jax.jit
def left(logits: Any, top_k: Any, top_p: Any) -> jax.Array:
    x = jnp.asarray(logits)
    scaled = x - jnp.max(x, axis=1, keepdims=True)
    ids = jnp.arange(x.shape[1], dtype=jnp.int32)
    return likeliest(x, scaled, ids, top_k=top_k, top_p=top_p, axes=(), vocab=x.shape[1])


@pytest.mark.parametrize("top_p", [None, 0.05, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("top_k", [None, 1, 7, VOCAB, 1000])
@pytest.mark.parametrize("ties", [False, True])
def test_what_is_left_is_what_sorting_leaves(
    ties: bool, top_k: int | None, top_p: float | None
) -> None:
    logits = normal(20, VOCAB)
    logits = np.round(logits) if ties else logits
    # Both signs, both zeros, and the extremes of magnitude.
    logits[0, :4] = [0.0, -0.0, 1e-30, -1e-30]
    logits[1, :2] = [-1e30, -np.inf]
    logits = np.where(logits == 0, np.float32(0), logits)
    found = left(logits, top_k, top_p)
    for row, x in zip(found, logits, strict=True):
        np.testing.assert_array_equal(row, kept_by_sorting(x, 1.0, top_k, top_p))


def test_top_k_of_equal_tokens_leaves_the_lowest() -> None:
    found = left(np.zeros((2, VOCAB), np.float32), np.array([1, 5]), None)
    np.testing.assert_array_equal(found.sum(axis=1), [1, 5])
    assert found[0, 0]
    assert found[1, :5].all()


def test_top_p_of_a_flat_tail() -> None:
    # 2**18 tokens, each 2**-20 of the likeliest: a quarter of its probability together.
    logits = np.full((1, 1 + 2**18), -20 * np.log(2), np.float32)
    logits[0, 0] = 0
    # 0.8 is the likeliest token itself; 0.9 needs half of the others.
    assert left(logits, None, 0.799).sum() == 1
    assert left(logits, None, 0.9).sum() == pytest.approx(2**17, rel=1e-3)


def test_a_ruled_out_token_is_never_drawn() -> None:
    logits = normal(VOCAB)
    logits[::2] = -np.inf
    assert not many(logits, Sampling(2.0))[::2].any()


def test_greedy_takes_the_lowest_of_the_likeliest() -> None:
    logits = np.zeros((3, VOCAB), np.float32)
    logits[1, [40, 7, 9]] = 1.0
    logits[2, 3], logits[2, :3] = -0.0, -1.0
    numbers = jnp.arange(3)
    for sampling in (Sampling(), Sampling(0.0), Sampling(0.0, top_k=4, top_p=0.5)):
        tokens = draw(jnp.asarray(logits), sampling, seeds=numbers, positions=numbers)
        np.testing.assert_array_equal(tokens, [0, 7, 3])
        assert tokens.dtype == jnp.int32


def test_a_tiny_temperature_is_greedy() -> None:
    logits, numbers = normal(20, VOCAB) * 100, jnp.arange(20)
    tokens = draw(jnp.asarray(logits), Sampling(1e-37), seeds=numbers, positions=numbers)
    np.testing.assert_array_equal(tokens, logits.argmax(axis=1))


EACH = Sampling(np.array([0, 1, 2, 0.5] * 4), 6, np.array([0.1, 1, 0.5, 0.9] * 4))


@pytest.mark.parametrize(
    ("shape", "axes", "rows", "sampling"),
    [
        ((2, 2, 2), ("x", "y", "z"), None, Sampling()),
        ((2, 2, 2), ("x", "y", "z"), None, Sampling(1.0)),
        ((2, 2, 2), ("x", "y", "z"), None, Sampling(1.2, top_p=0.8)),
        ((2, 2, 2), ("z", "x"), "y", Sampling(0.8, top_k=5)),
        ((2, 2, 2), ("z", "x"), "y", EACH),
        ((4, 2, 1), ("y", "z"), "x", EACH),
        ((1, 1, 8), "z", None, EACH),
        ((1, 1, 1), ("x", "y", "z"), None, EACH),
    ],
)
def test_draws_do_not_depend_on_the_sharding(
    mesh_of: Callable[..., Mesh],
    shape: tuple[int, int, int],
    axes: Any,
    rows: str | None,
    sampling: Sampling,
) -> None:
    sampling = jax.tree.map(jnp.float32, sampling)
    logits = np.round(normal(16, VOCAB), 1)
    seeds, positions = jnp.arange(16) // 4, jnp.arange(16) % 4
    expected = draw(jnp.asarray(logits), sampling, seeds=seeds, positions=positions)
    specs = jax.tree.map(lambda x: P(rows) if np.ndim(x) else P(), sampling)
    sharded = jax.shard_map(
        lambda x, how, s, p: sample(x, how, seeds=s, positions=p, axes=axes),
        mesh=mesh_of(shape, ("x", "y", "z")),
        in_specs=(P(rows, axes), specs, P(rows), P(rows)),
        out_specs=P(rows),
    )
    compiled = jax.jit(sharded).lower(logits, sampling, seeds, positions).compile()
    np.testing.assert_array_equal(compiled(logits, sampling, seeds, positions), expected)
    assert "all-gather" not in (compiled.as_text() or "")
    if sampling.temperature is not None:
        assert len(np.unique(expected)) > 4


def test_a_draw_depends_on_its_own_row_only() -> None:
    logits, seeds, positions = normal(6, VOCAB), jnp.arange(6) + 10, jnp.arange(6) * 3
    sampling = Sampling(1.5, top_k=20, top_p=0.9)
    expected = draw(jnp.asarray(logits), sampling, seeds=seeds, positions=positions)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0], [3]):
        index = jnp.array(order)
        found = draw(
            jnp.asarray(logits)[index], sampling, seeds=seeds[index], positions=positions[index]
        )
        np.testing.assert_array_equal(found, expected[index])


def test_the_users_default_generator_changes_no_draw() -> None:
    logits, numbers = jnp.asarray(normal(6, VOCAB)), jnp.arange(6)
    expected = sample(logits, Sampling(1.0), seeds=numbers, positions=numbers)
    with jax.default_prng_impl("rbg"):
        found = sample(logits, Sampling(1.0), seeds=numbers, positions=numbers)
    np.testing.assert_array_equal(found, expected)


def test_noise_is_gumbel_and_independent() -> None:
    noise = np.asarray(gumbel(jnp.arange(40) // 8, jnp.arange(40) % 8, jnp.arange(4000)))
    assert np.isfinite(noise).all()
    # Mean 0.5772 (Euler's constant) and variance pi**2 / 6 of the standard Gumbel distribution.
    assert noise.mean() == pytest.approx(0.57722, abs=5 * 1.283 / 400)
    assert noise.var() == pytest.approx(np.pi**2 / 6, rel=0.03)
    # Of 160000 numbers, exp(-exp(-g)) of them lie below g.
    for g in (-1.0, 0.0, 2.0, 5.0):
        assert np.mean(noise < g) == pytest.approx(np.exp(-np.exp(-g)), abs=5 * 0.5 / 400)
    # Rows differ in seed or position: 5 standard deviations of the correlation of 4000 pairs.
    correlation = np.corrcoef(noise) - np.eye(40)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_changing_a_number_compiles_nothing() -> None:
    traces = []

    @jax.jit
    def counted(logits: jax.Array, sampling: Sampling) -> jax.Array:
        traces.append(sampling)
        numbers = jnp.arange(2)
        return sample(logits, sampling, seeds=numbers, positions=numbers)

    for temperature, k in ((1.0, 3), (0.5, 4), (0.0, 1)):
        counted(jnp.asarray(normal(2, VOCAB)), Sampling(temperature, top_k=k))
    assert len(traces) == 1


SPECIAL = {
    "nan": np.full(VOCAB, np.nan),
    "a nan": np.where(np.arange(VOCAB) == 3, np.nan, normal(VOCAB)),
    "-inf": np.full(VOCAB, -np.inf),
    "inf": np.full(VOCAB, np.inf),
    "an inf": np.where(np.arange(VOCAB) == 37, np.inf, normal(VOCAB)),
    "two infs": np.where(np.arange(VOCAB) % 20 == 17, np.inf, normal(VOCAB)),
    "inf and -inf": np.where(np.arange(VOCAB) == 41, np.inf, -np.inf),
    "huge": np.where(np.arange(VOCAB) == 30, 3.4e38, -3.4e38),
    "subnormal": np.where(np.arange(VOCAB) == 11, 1e-40, -1e-40),
}


# What may be drawn of each; of the others, any token.
LEFT = {"an inf": [37], "two infs": [17, 37], "inf and -inf": [41], "huge": [30]}


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(1.0), Sampling(0.7, 9, 0.9), Sampling(1e-40, 9, 0.9)], ids=str
)
def test_a_token_of_the_vocabulary_whatever_the_logits(
    mesh_of: Callable[..., Mesh], sampling: Sampling
) -> None:
    logits = np.array([*SPECIAL.values()], np.float32)
    numbers = np.arange(len(SPECIAL))
    alone = draw(logits, sampling, seeds=numbers, positions=numbers)
    sharded = jax.shard_map(
        lambda x: sample(x, sampling, seeds=numbers, positions=numbers, axes=("x", "y")),
        mesh=mesh_of((4, 2), "xy"),
        in_specs=P(None, ("x", "y")),
        out_specs=P(),
    )
    np.testing.assert_array_equal(jax.jit(sharded)(logits), alone)
    for name, token in zip(SPECIAL, alone.tolist(), strict=True):
        assert token in LEFT.get(name, range(VOCAB)), name
    if sampling.temperature is None:
        assert alone.tolist() == [0, int(np.nanargmax(SPECIAL["a nan"])), 0, 0, 37, 17, 41, 30, 0]


def test_a_nan_is_as_good_as_ruled_out() -> None:
    logits = normal(VOCAB)
    poisoned, ruled_out = logits.copy(), logits.copy()
    poisoned[::3], ruled_out[::3] = np.nan, -np.inf
    how = Sampling(1.0, 12, 0.8)
    np.testing.assert_array_equal(many(poisoned, how, 500), many(ruled_out, how, 500))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, np.float64])
def test_logits_of_other_dtypes_are_read_as_float32(dtype: Any) -> None:
    with jax.enable_x64(dtype == np.float64):
        logits, numbers = jnp.asarray(normal(20, VOCAB)).astype(dtype), jnp.arange(20)
        for how in (Sampling(), Sampling(1.0, 9, 0.9)):
            found = draw(logits, how, seeds=numbers, positions=numbers)
            wide = draw(logits.astype(jnp.float32), how, seeds=numbers, positions=numbers)
            np.testing.assert_array_equal(found, wide)
