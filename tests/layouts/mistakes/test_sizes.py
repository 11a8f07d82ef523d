"""Sizes and shapes of meshes: as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

import collective_einsum as ce
import layouts
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.models.named_models import TINY_GROUPED

from .room import BATCH, PLAN, WORDS, Room, refuses

pytestmark = pytest.mark.slow


def sized(room: Room) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Everything that takes a size."""
    config, mesh = TINY_GROUPED, room.mesh
    asked: dict[str, Any] = {"mesh_shape": (2, 2, 2), "phase": "decode", "batch": 8, "context": 8}
    lowered: dict[str, Any] = {"plan": WORDS, "schedule": "blocking"}
    yield "batch", lambda n: layouts.plan(config, **asked | {"batch": n})
    yield "batch", lambda n: layouts.plan(config, **asked | {"batch": [n, 16]})
    yield "context", lambda n: layouts.plan(config, **asked | {"context": n})
    yield "length", lambda n: layouts.plan(config, **asked | {"phase": "prefill", "length": n})
    yield "chips", lambda n: layouts.plan(config, **asked | {"mesh_shape": None, "chips": n})
    yield "mesh_shape", lambda n: layouts.plan(config, **asked | {"mesh_shape": (n, 1, 1)})
    yield "batches", lambda n: layouts.sweep(config, phase="decode", batches=n, chips=8, context=8)
    yield "chips", lambda n: layouts.sweep(config, phase="decode", batches=8, chips=[n], context=8)
    yield "batch", lambda n: load("decode", batch=n, context=8)
    yield "context", lambda n: load("decode", batch=8, context=n)
    yield "batch", lambda n: layouts.default_decode(config, mesh, n, 8)
    yield "length", lambda n: layouts.default_prefill(config, mesh, 8, n, 8)
    yield "batch", lambda n: room.cache(n)
    yield "max_length", lambda n: room.cache(8, n)
    yield (
        "context",
        lambda n: layouts.lower_decode_step(config, mesh, batch=8, context=n, **lowered),
    )
    yield "batch", lambda n: layouts.lower_decode_step(config, mesh, batch=n, context=8, **lowered)
    yield "length", lambda n: layouts.lower_prefill(config, mesh, batch=8, length=n, **lowered)
    yield "d_model", lambda n: layouts.ModelConfig(2, n, 64, 8, 2, 8, 64)


def test_numpys_integers_are_sizes(room: Room) -> None:
    for _, call in sized(room):
        call(np.int64(8))
        call(np.array(8, np.int32))
    drawn, _ = room.generate(max_new_tokens=np.int32(2))
    assert drawn.shape == (BATCH, 2)
    counts = np.array([8, 16])
    found = layouts.plan("tiny-grouped", chips=8, phase="decode", batch=counts, context=8)
    assert {option.batch for option in found.options} == {8, 16}


@pytest.mark.parametrize("value", [True, 8.0, 8.5, "8", None, 0, -8, np.bool_(True), np.float32(8)])
def test_what_is_no_size(room: Room, value: Any) -> None:
    calls = [*sized(room), ("max_new_tokens", lambda n: room.generate(max_new_tokens=n))]
    optional = {"batch", "chips", "mesh_shape", "batches"}
    for name, call in calls:
        if value is None and name in optional:
            continue
        with pytest.raises(ValueError, match=f"{name}.*positive integer") as refused:
            call(value)
        if value == 8.0 and name != "mesh_shape":
            assert "write 8" in str(refused.value)


def test_a_traced_size(room: Room) -> None:
    words = "sizes must be known while tracing: make it a static argument of jit"
    refuses(lambda: jax.jit(lambda n: room.cache(n))(8), words)


def test_meshes_by_shape() -> None:
    mesh = jax.sharding.AbstractMesh((2, 4, 1), ("x", "y", "z"))
    for shape in (mesh, {"z": 1, "x": 2, "y": 4}, "2x4x1", [2, 4, 1], np.array([2, 4, 1])):
        found = layouts.plan("tiny-grouped", mesh_shape=shape, phase="decode", batch=8, context=8)
        assert found.best.sizes == {"x": 2, "y": 4, "z": 1}
    how: dict[str, Any] = {"phase": "decode", "batch": 8, "context": 8}
    for bad in (8, (2, 4), "2x4", {"x": 2}, (2, 4, "1"), None):
        if bad is not None:
            refuses(
                lambda bad=bad: layouts.plan(TINY_GROUPED, mesh_shape=bad, **how),
                "must be three positive integers, the sizes of x, y and z, such as (2, 2, 2)",
            )
        refuses(
            lambda bad=bad: cost(TINY_GROUPED, PLAN, bad, load(**how), ce.TPU_V4),
            "must be three positive integers",
        )
