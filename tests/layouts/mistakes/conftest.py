"""The model on its mesh that the tests of mistakes share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import layouts
from layouts.models.named_models import TINY_GROUPED

from .room import Room


@pytest.fixture(scope="module")
def room(mesh_of: Any) -> Room:
    mesh = mesh_of((2, 2, 2), "xyz")
    return Room(mesh, layouts.init(TINY_GROUPED, mesh, jax.random.key(0), jnp.float32))
