"""What the planner returns is taken wherever a function takes layouts: a `Plan`, an `Option`, or its
words; and layouts are checked and placed once for each program."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from collective_einsum import TPU_V4
from layouts.cost import cache_bytes, cost, load
from layouts.decoding import Program, compiled_step
from layouts.models.named_models import TINY_GROUPED

BATCH, LENGTH, ROOM = 8, 4, 16
SIZES = {"x": 2, "y": 2, "z": 2}


@pytest.fixture(scope="module")
def planned() -> layouts.Plan:
    return layouts.plan(TINY_GROUPED, mesh_shape=(2, 2, 2), phase="decode", batch=8, context=ROOM)


@pytest.fixture
def mesh(mesh_of: Any) -> Any:
    return mesh_of((2, 2, 2), "xyz")


def forms(planned: layouts.Plan) -> list[Any]:
    return [planned, planned.best, str(planned.best)]


def same(found: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("form", [0, 1, 2], ids=["Plan", "Option", "words"])
def test_the_decoder_takes_what_the_planner_returns(
    planned: layouts.Plan, mesh: Any, form: int
) -> None:
    config = TINY_GROUPED
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    tokens = np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % config.vocab

    def run(plan: Any) -> Any:
        cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
        first, cache = layouts.prefill(config, mesh, params, cache, tokens, plan=plan)
        second, cache = layouts.decode_step(config, mesh, params, cache, tokens[:, 0], plan=plan)
        return first, second, layouts.move_cache(config, mesh, cache, plan)

    same(run(forms(planned)[form]), run(planned.partitioning))


def test_generate_takes_a_plan_for_either_phase(planned: layouts.Plan, mesh: Any) -> None:
    config = TINY_GROUPED
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    tokens = np.arange(BATCH * LENGTH).reshape(BATCH, LENGTH) % config.vocab

    def run(plan: Any) -> Any:
        return layouts.generate(
            config, mesh, params, tokens, max_new_tokens=2, plan=plan, prefill_plan=plan
        )

    same(run(planned), run(planned.partitioning))


OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "lower_decode_step": lambda plan, mesh: layouts.lower_decode_step(
        TINY_GROUPED, mesh, batch=BATCH, context=ROOM, plan=plan
    ).as_text(),
    "lower_prefill": lambda plan, mesh: layouts.lower_prefill(
        TINY_GROUPED, mesh, batch=BATCH, length=ROOM, plan=plan
    ).as_text(),
    "cache_specs": lambda plan, mesh: layouts.cache_specs(
        TINY_GROUPED, mesh, plan, layouts.init_cache(TINY_GROUPED, mesh, BATCH, ROOM)
    ),
    "cost": lambda plan, _: (
        cost(TINY_GROUPED, plan, SIZES, load("decode", batch=BATCH, context=ROOM), TPU_V4).seconds
    ),
    "cache_bytes": lambda plan, _: cache_bytes(
        TINY_GROUPED, plan, SIZES, load("decode", batch=BATCH, context=ROOM)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_take_what_the_planner_returns(
    planned: layouts.Plan, mesh: Any, name: str
) -> None:
    expected = OTHERS[name](planned.partitioning, mesh)
    for plan in forms(planned):
        found = OTHERS[name](plan, mesh)
        if name == "cache_specs":
            assert dataclasses.astuple(found) == dataclasses.astuple(expected)
        else:
            assert found == expected


def test_a_plan_in_which_nothing_fits_says_so(mesh: Any) -> None:
    asked: dict[str, Any] = {"phase": "decode", "batch": 8, "context": ROOM, "max_seconds": 1e-9}
    empty = layouts.plan(TINY_GROUPED, mesh_shape=(2, 2, 2), **asked)
    with pytest.raises(ValueError, match=r"no layout of .* the nearest is"):
        layouts.init_cache(TINY_GROUPED, mesh, BATCH, ROOM, plan=empty)


def test_sizes_and_placement_are_worked_out_once(
    planned: layouts.Plan, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for name in ("check_mesh", "place"):
        function = getattr(compiled_step, name)

        def counted(*args: Any, name: str = name, function: Any = function) -> Any:
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(compiled_step, name, counted)
    params = layouts.init(TINY_GROUPED, mesh, jax.random.key(0), jnp.float32)
    program = Program.of(TINY_GROUPED, mesh, planned, "auto", params)
    cache = layouts.init_cache(TINY_GROUPED, mesh, BATCH, ROOM, plan=planned)
    assert program.padded_batch(BATCH) == BATCH
    assert program.placement == program.placement
    assert program.padded_cache(cache) is cache
    assert program.cache_specs(cache) is not None
    assert program.param_specs(params)
    assert sorted(calls) == ["check_mesh", "place"]
