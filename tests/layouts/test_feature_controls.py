"""The comparison of each feature with the reference sees it: without it, the reference differs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layouts.models.params import init
from layouts.models.rotary import Rotary
from tests.products import mostly_exhaustive

from .test_model_features import FEATURES, expected, scaled

pytestmark = pytest.mark.slow

# Of each feature, the fields of a model without it.
PLAIN = {"rotary": Rotary(base=100.0)}
WITHOUT: dict[str, dict[str, Any]] = {
    "dynamic": PLAIN,
    "longrope": PLAIN,
    "longrope, short": PLAIN,
    "learned positions": {"learned_positions": None},
    "learned positions, other axes": {"learned_positions": None},
    "learned positions, one for all": {"learned_positions": None},
    "alibi": {"alibi": None},
    "alibi, 6 heads, padded": {"alibi": None},
    "alibi, multihead": {"alibi": None},
    "alibi, window": {"alibi": None},
    "norm of the embedding": {"embedding_norm": False},
    "norm of the embedding, rms": {"embedding_norm": False},
    "sinks": {"sinks": False},
    "sinks, padded": {"sinks": False},
    "sinks, multihead": {"sinks": False},
    "clamped gate": {"gate_clamp": None},
    "clamped gate, parallel": {"gate_clamp": None},
    "clipped": {"clip_qkv": None},
}


@pytest.mark.parametrize(
    "feature", mostly_exhaustive(list(WITHOUT), [one for one in WITHOUT if "," not in one])
)
def test_the_feature_is_seen(feature: str) -> None:
    config = FEATURES[feature]
    params = init(jax.random.key(0), config, jnp.float32)
    wanted = expected(config, params)
    other = dataclasses.replace(config, **WITHOUT[feature])
    found = expected(other, _as_needed(params, other))
    errors = [np.abs(one - two).max() for one, two in zip(found, wanted, strict=True)]
    assert min(errors) > 1e-2, errors


def _as_needed(params: Any, config: Any) -> Any:
    """Of the parameters, those that the config has."""
    own = init(jax.random.key(0), config, jnp.float32)
    return jax.tree_util.tree_map_with_path(lambda path, _: _at(params, path), own)


def _at(tree: Any, path: Any) -> Any:
    for entry in path:
        tree = tree[entry.key]
    return tree


def test_short_is_plain() -> None:
    config = FEATURES["dynamic, short"]
    params = init(jax.random.key(0), config, jnp.float32)
    plain = expected(scaled(None), params)
    for one, other in zip(expected(config, params), plain, strict=True):
        np.testing.assert_array_equal(one, other)
