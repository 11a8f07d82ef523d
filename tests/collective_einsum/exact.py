"""Small operands whose sums are exact, on a mesh, and their comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MeshOf = Callable[..., Mesh]


def whole(*shape: int, seed: int = 0) -> np.ndarray:
    """Small whole numbers, whose sums are exact."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


X, W, V = whole(8, 16), whole(16, 16, seed=1), whole(16, 8, seed=2)
SPECS = (P(None, "x"), P("x", "y"), P("y"))


def on(mesh: Mesh, x: Any, spec: P) -> jax.Array:
    return jax.device_put(x, NamedSharding(mesh, spec))


def equal(got: Any, want: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), got, want
    )
