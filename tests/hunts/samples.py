"""Draws from random logits, settings and shardings, against a sampler in plain numpy."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from layouts import Sampling
from layouts.sampling.sampling import sample, seed_words

TINY = 2.0**-126
LARGEST = float(np.finfo(np.float32).max)
SPECIALS = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1.5e-38, LARGEST, -LARGEST, 1e30)
MESHES = (
    *(((n,), ("x",)) for n in range(1, 9)),
    ((2, 2, 2), ("x", "y", "z")),
    ((2, 2, 2), ("z", "x")),
    ((4, 2), ("y", "x")),
    ((2, 4), ("x", "y")),
)
# Of which those that a caller could see would be refused, and those that it could not are clamped.
TEMPERATURES = (0.0, 1e-40, 1e-37, 0.3, 1.0, 7.0, 1e4, 3e38)
HIDDEN_TEMPERATURES = (*TEMPERATURES, np.nan, -1.0, np.inf)
TOP_P = (1e-40, 1e-6, 0.1, 0.5, 0.9, 0.999, 1.0)
HIDDEN_TOP_P = (*TOP_P, 0.0, -1.0, np.nan, 2.0)
HIDDEN_TOP_K = (0, -5, 2**31 - 1, 1, 3)


def case(seed: int) -> None:
    """Raises where a draw is not numpy's, or another one sharded than not."""
    rng = np.random.default_rng(seed)
    shape, axes = MESHES[rng.integers(len(MESHES))]
    names = tuple("xyz"[: len(shape)])
    devices = int(np.prod([shape[names.index(axis)] for axis in axes]))
    batch, vocab = int(rng.integers(1, 7)), devices * int(rng.integers(1, 60))
    kind = str(rng.choice(["float32", "float32", "bfloat16", "float16", "float64"]))
    with np.errstate(over="ignore"):
        logits = _logits(rng, batch, vocab).astype(jnp.dtype(kind))
    hidden = bool(rng.integers(2))
    settings = _settings(rng, batch, vocab, hidden)
    words = rng.integers(0, 2**64, batch, np.uint64) >> np.uint64(rng.integers(64))
    seeds = words.astype(rng.choice(["int64", "uint64", "uint32", "int32", "int8"]))
    positions = rng.integers(0, 4096, batch).astype(np.int32)

    with jax.enable_x64(True) if kind == "float64" else contextlib.nullcontext():
        mesh = jax.make_mesh(
            shape, names, axis_types=(AxisType.Auto,) * len(shape), devices=_devices(shape)
        )
        keys = seed_words(seeds)
        if hidden:
            whole, parts = _hidden(mesh, axes)
            given = (logits, settings, keys, positions)
        else:
            whole, parts = _seen(mesh, axes, Sampling(*settings))
            given = (logits, keys, positions)
        alone = np.asarray(jax.jit(whole)(*given))
        found = np.asarray(jax.jit(parts)(*given))
    np.testing.assert_array_equal(found, alone, err_msg="sharded and not")
    assert alone.dtype == np.int32
    noise = _noise(seeds, positions, vocab)
    for i in range(batch):
        one = [None if x is None else np.broadcast_to(x, (batch,))[i] for x in settings]
        allowed = _allowed(logits[i].astype(np.float32), one, noise[i])
        assert int(alone[i]) in allowed, (
            f"row {i} draws {int(alone[i])} of {vocab}, not one of {sorted(allowed)}; settings {one}"
        )


def _devices(shape: tuple[int, ...]) -> Any:
    return jax.devices()[: int(np.prod(shape))]


def _hidden(mesh: Any, axes: tuple[str, ...]) -> Any:
    """Samplers, whole and sharded, whose settings are traced."""

    def whole(logits: Any, settings: Any, seeds: Any, positions: Any, axes: Any = ()) -> Any:
        return sample(logits, Sampling(*settings), seeds=seeds, positions=positions, axes=axes)

    parts = jax.shard_map(
        lambda *args: whole(*args, axes=axes),
        mesh=mesh,
        in_specs=(P(None, axes), P(), P(), P()),
        out_specs=P(),
    )
    return whole, parts


def _seen(mesh: Any, axes: tuple[str, ...], sampling: Sampling) -> Any:
    """Samplers, whole and sharded, whose settings are constants."""

    def whole(logits: Any, seeds: Any, positions: Any, axes: Any = ()) -> Any:
        return sample(logits, sampling, seeds=seeds, positions=positions, axes=axes)

    parts = jax.shard_map(
        lambda *args: whole(*args, axes=axes),
        mesh=mesh,
        in_specs=(P(None, axes), P(), P()),
        out_specs=P(),
    )
    return whole, parts


def _logits(rng: np.random.Generator, batch: int, vocab: int) -> np.ndarray:
    """Rows of many kinds: normal, tied, flat, with specials, all of one special."""
    x = rng.standard_normal((batch, vocab)) * rng.choice([1e-38, 1.0, 5.0, 1e30], (batch, 1))
    x = np.where(rng.random((batch, 1)) < 0.3, np.round(x), x)
    rate = rng.choice([0, 0, 0.05, 0.5], (batch, 1))
    x = np.where(rng.random((batch, vocab)) < rate, rng.choice(SPECIALS, (batch, vocab)), x)
    with np.errstate(over="ignore"):
        return np.where(rng.random((batch, 1)) < 0.1, rng.choice(SPECIALS, (batch, 1)), x).astype(
            np.float32
        )


def _settings(rng: np.random.Generator, batch: int, vocab: int, hidden: bool) -> tuple[Any, ...]:
    """Temperature, top_k and top_p: None, a number, or one for each row."""

    def some(choices: Any, dtype: Any) -> Any:
        shape = (batch,) if rng.integers(2) else ()
        return rng.choice(choices, shape).astype(dtype)

    if rng.random() < 0.1:
        return None, None, None
    counts = (1, 2, 7, vocab, vocab + 1, *(HIDDEN_TOP_K if hidden else (2**31 - 1,)))
    wide = np.int32 if hidden else np.int64
    top_k = some((*counts, *(() if hidden else (2**32, 2**40))), wide)
    return (
        some(HIDDEN_TEMPERATURES if hidden else TEMPERATURES, np.float32),
        None if rng.integers(2) else top_k,
        None if rng.integers(2) else some(HIDDEN_TOP_P if hidden else TOP_P, np.float32),
    )


def _noise(seeds: np.ndarray, positions: np.ndarray, vocab: int) -> np.ndarray:
    """Gumbel noise [batch, vocab]: of the hash of the seed, 64 bits of it, the position and the
    token."""

    @jax.jit
    def bits(words: Any, positions: Any) -> Any:
        def one(words: Any, position: Any, token: Any) -> Any:
            key = jax.random.wrap_key_data(words, impl="threefry2x32")
            key = jax.random.fold_in(jax.random.fold_in(key, position), token)
            return jax.random.key_data(key)[0]

        rows = jax.vmap(jax.vmap(one, (None, None, 0)), (0, 0, None))
        return rows(words, positions, jnp.arange(vocab, dtype=jnp.uint32))

    # Python's own integers, so that nothing of numpy's conversions is taken for granted.
    numbers = [int(seed) % 2**64 for seed in seeds]
    words = np.array([[n >> 32, n % 2**32] for n in numbers], np.uint32)
    uniform = (np.asarray(bits(words, positions)).astype(np.float32) + np.float32(0.5)) * 2.0**-32
    v = np.minimum(uniform.astype(np.float32), np.float32(1 - 2.0**-24)).astype(np.float64)
    return -np.log(-np.log1p(-v))


def _allowed(x: np.ndarray, settings: list[Any], noise: np.ndarray) -> set[int]:
    """The tokens that may be drawn from one row: more than one where roundings decide."""
    temperature, top_k, top_p = settings
    x = x.astype(np.float64)
    x = np.where(np.isnan(x), -np.inf, np.where(np.abs(x) < TINY, 0, x))
    greedy = {int(np.argmax(x))}
    if temperature is None or not temperature >= TINY:
        return greedy
    if np.isinf(x.max()):
        x = np.where(x == x.max(), 0, -np.inf)
    scaled = (x - x.max()) / min(float(temperature), 1 / TINY)
    order = np.argsort(-x, kind="stable")
    if top_k is not None:
        order = order[: max(int(top_k), 1)]
    counts = {order.size}
    if top_p is not None and not top_p >= 1:
        mass = np.cumsum(np.exp(scaled[order]))
        p = float(top_p) if top_p > 0 else 0.0
        off = 5e-6 + x.size * 2.0**-30
        low, high = (1 + int(np.sum(mass < (p + by) * mass[-1])) for by in (-off, off))
        counts = {min(c, order.size) for c in range(low, high + 1)}
    allowed = set()
    for count in counts:
        kept = order[:count]
        noisy = scaled[kept] + noise[kept]
        allowed |= set(kept[noisy >= noisy.max() - 1e-4].tolist())
    return allowed
