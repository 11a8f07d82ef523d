"""Settings of draws and seeds: what each dtype means, what is clamped, and what is refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layouts.sampling.sampling import Sampling, gumbel, sample, seed_words

from .draws import VOCAB, draw, normal

pytestmark = pytest.mark.slow


def test_settings_of_each_row() -> None:
    logits = jnp.asarray(normal(4, VOCAB))
    seeds, positions = jnp.arange(4), jnp.full((4,), 9)
    temperature = np.array([0.0, 1.0, 2.0, 2.0], np.float32)
    top_k, top_p = np.array([3, 48, 2, 9]), np.array([0.9, 1.0, 1.0, 0.4], np.float32)
    together = draw(logits, Sampling(temperature, top_k, top_p), seeds=seeds, positions=positions)
    for i in range(4):
        one = slice(i, i + 1)
        alone = draw(
            logits[one],
            Sampling(float(temperature[i]), int(top_k[i]), float(top_p[i])),
            seeds=seeds[one],
            positions=positions[one],
        )
        assert together[i] == alone[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, r"temperature=-1\.0 must be finite and not negative"),
        ({"temperature": float("nan")}, r"temperature=nan must be"),
        ({"temperature": float("inf")}, r"temperature=inf must be"),
        ({"temperature": 1.0, "top_k": 0}, r"top_k=0 must be an integer of at least 1"),
        ({"temperature": 1.0, "top_k": 2.5}, r"top_k=2\.5 must be an integer"),
        ({"temperature": 1.0, "top_p": 0.0}, r"top_p=0\.0 must be in \(0, 1\]"),
        ({"temperature": 1.0, "top_p": np.array([0.5, 1.5])}, r"must be in \(0, 1\]"),
        ({"temperature": True}, r"temperature=True must be finite and not negative, not bool"),
        ({"temperature": 1.0, "top_k": True}, r"top_k=True must be an integer of at least 1, not"),
        ({"temperature": [1.0, -1.0]}, r"temperature=\[1\.0, -1\.0\] must be finite"),
        ({"temperature": jnp.array(-1.0)}, r"temperature=-1\.0 must be finite"),
        ({"temperature": 1.0, "top_k": jnp.array(0)}, r"top_k=0 must be an integer of at least 1"),
        ({"temperature": 1.0, "top_p": jnp.array(0.0)}, r"top_p=0\.0 must be in \(0, 1\]"),
        ({"temperature": 1.0, "top_p": np.float32("nan")}, r"top_p=nan must be in \(0, 1\]"),
        ({"top_k": 3}, r"do nothing to a greedy choice; give a temperature"),
    ],
)
def test_refuses_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


# Settings that cannot be seen, and those that they stand for.
CLAMPED = [
    ({"top_k": 0}, {"top_k": 1}),
    ({"top_k": -(2**31)}, {"top_k": 1}),
    ({"top_k": np.nan}, {"top_k": 1}),
    ({"top_k": 2**31 - 1}, {"top_k": VOCAB}),
    ({"top_k": np.inf}, {"top_k": VOCAB}),
    ({"top_p": 0.0}, {"top_k": 1}),
    ({"top_p": -1.0}, {"top_k": 1}),
    ({"top_p": np.nan}, {"top_k": 1}),
    ({"top_p": 1e-40}, {"top_k": 1}),
    ({"top_p": 2.0}, {"top_p": 1.0}),
    ({"temperature": np.nan}, {"temperature": 0.0}),
    ({"temperature": -1.0}, {"temperature": 0.0}),
    ({"temperature": 1e-40}, {"temperature": 0.0}),
    ({"temperature": np.inf}, {"temperature": float(np.finfo(np.float32).max)}),
]


@pytest.mark.parametrize(("given", "meant"), CLAMPED, ids=str)
def test_what_cannot_be_seen_is_clamped(given: dict[str, Any], meant: dict[str, Any]) -> None:
    logits, numbers = jnp.asarray(normal(30, VOCAB)), jnp.arange(30)

    @jax.jit
    def hidden(settings: dict[str, Any]) -> jax.Array:
        how = Sampling(**({"temperature": 1.5} | settings))
        return sample(logits, how, seeds=numbers, positions=numbers)

    wanted = draw(
        logits, Sampling(**({"temperature": 1.5} | meant)), seeds=numbers, positions=numbers
    )
    np.testing.assert_array_equal(hidden(given), wanted)
    assert len(np.unique(wanted)) > 4


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"top_k": np.int64(2**32)}, {"top_k": VOCAB}),
        ({"top_k": 2**70}, {"top_k": VOCAB}),
        ({"top_k": np.full(30, 2**32 + 1)}, {"top_k": VOCAB}),
        ({"top_p": 1e-40}, {"top_k": 1}),
        ({"top_p": [0.5] * 30}, {"top_p": 0.5}),
        ({"temperature": [1.0] * 30}, {"temperature": 1.0}),
        ({"temperature": (1,) * 30}, {"temperature": 1.0}),
        ({"temperature": 1e39}, {"temperature": float(np.finfo(np.float32).max)}),
    ],
    ids=str,
)
def test_wide_and_listed_settings(given: dict[str, Any], meant: dict[str, Any]) -> None:
    logits, numbers = jnp.asarray(normal(30, VOCAB)), jnp.arange(30)
    found, wanted = (
        draw(logits, Sampling(**({"temperature": 1.5} | how)), seeds=numbers, positions=numbers)
        for how in (given, meant)
    )
    np.testing.assert_array_equal(found, wanted)


def test_64_bit_counts_are_compared_whole() -> None:
    logits, numbers = jnp.asarray(normal(30, VOCAB)), jnp.arange(30)
    with jax.enable_x64(True):
        found = jax.jit(
            lambda k: sample(logits, Sampling(1.5, k), seeds=numbers, positions=numbers)
        )(jnp.int64(2**32 + 1))
    wanted = draw(logits, Sampling(1.5, VOCAB), seeds=numbers, positions=numbers)
    np.testing.assert_array_equal(found, wanted)


def test_64_bits_of_a_seed_count() -> None:
    numbers = np.array([5, 5 + 2**32, 5 + 2**33, -5, 2**32 - 5], np.int64)
    words = seed_words(numbers)
    assert words.dtype == np.uint32
    assert words.tolist() == [[0, 5], [1, 5], [2, 5], [2**32 - 1, 2**32 - 5], [0, 2**32 - 5]]
    np.testing.assert_array_equal(seed_words(numbers.astype(np.uint64)), words)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(jax.jit(seed_words)(numbers), words)
        np.testing.assert_array_equal(seed_words(jnp.asarray(numbers)), words)
    rows = gumbel(numbers, np.zeros(5, np.int32), jnp.arange(VOCAB))
    assert len(np.unique(np.asarray(rows), axis=0)) == 5


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64])
def test_a_seed_is_the_same_in_every_dtype(dtype: Any) -> None:
    numbers = np.array([0, 1, 100, -1, -100] if np.issubdtype(dtype, np.signedinteger) else [0, 9])
    wanted = seed_words(numbers.astype(np.int64))
    np.testing.assert_array_equal(seed_words(numbers.astype(dtype)), wanted)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(jax.jit(seed_words)(numbers.astype(dtype)), wanted)


def test_refuses_shapes() -> None:
    logits, numbers = jnp.zeros((4, VOCAB)), jnp.arange(4)
    with pytest.raises(ValueError, match=r"logits of shape \(4, 1, 48\) must be \[batch, vocab\]"):
        sample(logits[:, None], Sampling(), seeds=numbers, positions=numbers)
    with pytest.raises(
        ValueError, match=r"seeds of int32 and shape \(3,\).*shape \(4,\), one for each row"
    ):
        sample(logits, Sampling(), seeds=numbers[:3], positions=numbers)
    with pytest.raises(ValueError, match=r"positions of float32"):
        sample(logits, Sampling(), seeds=numbers, positions=jnp.zeros(4))
    with pytest.raises(ValueError, match=r"sampling.temperature of shape \(3,\).*each of 4 rows"):
        sample(logits, Sampling(np.ones(3)), seeds=numbers, positions=numbers)
    with pytest.raises(ValueError, match=r"at most 4194304 tokens exactly.*has 4194305"):
        jax.eval_shape(
            lambda x: sample(x, Sampling(1.0, top_p=0.5), seeds=numbers, positions=numbers),
            jax.ShapeDtypeStruct((4, 2**22 + 1), jnp.float32),
        )
