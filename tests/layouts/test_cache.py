"""Writing to a cache: at every sequence's own place, and nowhere else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import tuning
from layouts.layers import kv_cache as caches
from layouts.layers.kv_cache import append, empty_cache, fill
from layouts.models.cache import Entries
from layouts.models.named_models import TINY_GROUPED

LAYERS, B, K, S, D = 2, 5, 2, 6, 4


def entries(seed: int, *shape: int, scaled: bool = False) -> Entries:
    values = jax.random.normal(jax.random.key(seed), shape)
    return Entries(values, values[..., 0] if scaled else None)


def by_hand(old: Any, new: Any, starts: Any, counts: Any, dim: int) -> np.ndarray:
    out = np.array(old)
    for b in range(B):
        for i in range(counts[b]):
            if starts[b] + i < out.shape[dim]:
                where = (slice(None), b, slice(None), starts[b] + i)
                out[where] = np.asarray(new)[:, b, :, i]
    return out


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("unrolled", [0, 16])
@pytest.mark.parametrize("new", [1, 3, S])
def test_append(monkeypatch: pytest.MonkeyPatch, new: int, unrolled: int, scaled: bool) -> None:
    monkeypatch.setattr(tuning, "UNROLLED_WRITES", unrolled)
    old = entries(0, LAYERS, B, K, S, D, scaled=scaled)
    fresh = entries(1, LAYERS, B, K, new, D, scaled=scaled)
    # At the start, in the middle, up to the end, beyond it, and nothing at all.
    starts = np.array([0, 2, S - new, S - 1, 1], np.int32)
    counts = np.array([new, max(1, new - 1), new, new, 0], np.int32)
    found = jax.jit(append)(old, fresh, jnp.asarray(starts), jnp.asarray(counts))
    np.testing.assert_array_equal(
        found.values, by_hand(old.values, fresh.values, starts, counts, 3)
    )
    if scaled:
        np.testing.assert_array_equal(
            found.scale, by_hand(old.scale, fresh.scale, starts, counts, 3)
        )


@pytest.mark.parametrize("unrolled", [0, 16])
@pytest.mark.parametrize("new", [1, 3, 33, 64])
def test_append_to_tiles_of_int8(monkeypatch: pytest.MonkeyPatch, new: int, unrolled: int) -> None:
    """Within a tile, across two, at the end and beyond it, as anywhere."""
    monkeypatch.setattr(tuning, "UNROLLED_WRITES", unrolled)
    size = 3 * caches.INT8_TILE
    shapes = (LAYERS, B, K, size, D), (LAYERS, B, K, new, D)
    old, fresh = (
        Entries(jax.random.randint(jax.random.key(i), shape, -128, 128, jnp.int8))
        for i, shape in enumerate(shapes)
    )
    for starts in ([0, 31, 32, 33, 95], [size - new, size - 1, size, 5, 63]):
        counts = np.array([new, new, max(1, new - 1), 0, new], np.int32)
        found = jax.jit(append)(old, fresh, jnp.asarray(starts, jnp.int32), jnp.asarray(counts))
        np.testing.assert_array_equal(
            found.values, by_hand(old.values, fresh.values, starts, counts, 3)
        )


def test_fill_writes_one_layer() -> None:
    old, fresh = entries(0, LAYERS, B, K, S, D), entries(1, B, K, 2, D)
    found = np.asarray(fill(old, fresh, 1).values)
    expected = np.array(old.values)
    expected[1, :, :, :2] = fresh.values
    np.testing.assert_array_equal(found, expected)


def test_int8_entries_have_a_scale_for_each_position() -> None:
    cache = empty_cache(TINY_GROUPED, 2, 3, int8=True)
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 8)) * jnp.arange(1.0, 4)[:, None]
    stored = cache.k.like(x)
    assert stored.values.dtype == jnp.int8
    assert stored.scale is not None
    assert stored.scale.shape == (2, 2, 3)
    back = stored.values.astype(jnp.float32) * stored.scale[..., None]
    assert (np.abs(back - x).max(-1) <= 0.51 * np.asarray(stored.scale)).all()


def test_refuses_in_words() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0 and 3"):
        empty_cache(TINY_GROUPED, 0, 3)
    one = empty_cache(TINY_GROUPED, 1, 3)
    with pytest.raises(ValueError, match="0 of 3 positions; make that cache with max_length=0"):
        layouts.shared_prefix(one)
    with pytest.raises(ValueError, match="got a cache of 2 with a prefix of 0"):
        layouts.shared_prefix(empty_cache(TINY_GROUPED, 2, 3))
    prefix = caches.Prefix(Entries(one.k.values[:, 0]), Entries(one.v.values[:, 0]))
    with pytest.raises(ValueError, match="stored as bfloat16 but the cache as int8"):
        empty_cache(TINY_GROUPED, 4, 3, int8=True, prefix=prefix)
