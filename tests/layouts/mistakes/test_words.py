"""Names, flags and options: taken as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.models.named_models import TINY_GROUPED

from .room import PLAN, WORDS, Room, refuses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"phase": "Decode"}, "; did you mean 'decode'?"),
        ({"phase": "pre-fill"}, "; did you mean 'prefill'?"),
        ({"phase": None}, "phase=None is neither 'decode' nor 'prefill'"),
        ({"objective": "latencey"}, "; did you mean 'latency'?"),
        ({"overlap": False}, "overlap=False is none of ('none', 'auto')"),
        ({"weights": "bfloat16"}, "; did you mean 'bf16'?"),
        ({"cache": "INT8"}, "; did you mean 'int8'?"),
        ({"weights": jnp.int8}, "is neither 'bf16' nor 'int8'"),
        ({"chip": "v44"}, "no chip is known by that name; give one of 'v4'"),
        ({"chip": 4}, "chip=4 is no collective_einsum.Chip"),
        ({"max_seconds": "1"}, "max_seconds='1' must be a number of seconds"),
        ({"max_seconds": float("nan")}, "max_seconds=nan must be a number of seconds"),
        ({"max_seconds": True}, "max_seconds=True must be a number of seconds"),
    ],
)
def test_words_of_a_plan(given: Any, words: str) -> None:
    how: dict[str, Any] = {"mesh_shape": (2, 2, 2), "phase": "decode", "batch": 8, "context": 8}
    refuses(lambda: layouts.plan(TINY_GROUPED, **how | given), words)
    meant = re.search("did you mean '(.*)'", words)
    if meant:
        ((name, _),) = given.items()
        found = layouts.plan(TINY_GROUPED, **how | {name: meant[1], "length": 8})
        assert found.feasible


@pytest.mark.parametrize("name", ["palm-62b", "PaLM 62B", "palm62b", "PALM_62B"])
def test_models_by_name(name: str) -> None:
    how: dict[str, Any] = {"mesh_shape": (4, 4, 4), "phase": "decode", "batch": 64, "context": 2048}
    wanted = layouts.plan(layouts.PALM_62B, **how)
    assert layouts.plan(name, chip="v4", **how) == wanted
    assert layouts.model(name) is layouts.PALM_62B
    asked = load("decode", batch=64, context=2048)
    assert cost(name, wanted, (4, 4, 4), asked, "TPU v4") == wanted.cost


def test_models_are_taken_by_name_and_nothing_else(room: Room) -> None:
    config: Any
    for config in ("tiny-group", None, layouts.ModelConfig, {"layers": 2}, room.mesh):
        words = (
            "did you mean 'tiny-grouped'?" if config == "tiny-group" else "is no ModelConfig; give"
        )
        for call in (
            lambda config=config: layouts.init(config, room.mesh, jax.random.key(0)),
            lambda config=config: layouts.init_cache(config, room.mesh, 8, 8),
            lambda config=config: layouts.move_cache(config, room.mesh, room.cache(), PLAN),
            lambda config=config: layouts.param_specs(config, room.mesh),
            lambda config=config: layouts.lower_prefill(config, room.mesh, batch=8, length=8),
            lambda config=config: layouts.default_decode(config, room.mesh, 8, 8),
            lambda config=config: layouts.sweep(config, phase="decode", context=8),
            lambda config=config: room.prefill(config=config),
            lambda config=config: room.decode(config=config),
            lambda config=config: room.generate(config=config),
        ):
            refuses(call, words)
    made = layouts.init("tiny-grouped", room.mesh, jax.random.key(0), "float32")
    jax.tree.map(np.testing.assert_array_equal, made, room.params)


def test_flags_are_true_or_false(room: Room) -> None:
    lowered: dict[str, Any] = {"batch": 8, "context": 8, "plan": WORDS}
    for name, call in (
        ("int8", lambda: room.cache(int8="int8")),
        ("int8_cache", lambda: room.generate(int8_cache="int8")),
        (
            "unrolled",
            lambda: layouts.init("tiny-grouped", room.mesh, jax.random.key(0), unrolled=2),
        ),
        (
            "int8_cache",
            lambda: layouts.lower_decode_step("tiny-grouped", room.mesh, int8_cache=1, **lowered),
        ),
        (
            "unrolled",
            lambda: layouts.lower_decode_step("tiny-grouped", room.mesh, unrolled=1, **lowered),
        ),
    ):
        with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
            call()


def test_pareto_and_sweep() -> None:
    found = layouts.plan(TINY_GROUPED, chips=(4, 8), phase="decode", batch=(8, 12), context=8)
    assert layouts.pareto(found) == layouts.pareto(found.options) == layouts.pareto(found.feasible)
    options: Any
    for options in (None, [found], found.best, "all"):
        refuses(
            lambda options=options: layouts.pareto(options), "options must be a sequence of Opt"
        )
    refuses(
        lambda: layouts.sweep(TINY_GROUPED, phase="decode", context=8, batch=8),
        "takes no batch=; give batches=",
    )
    refuses(
        lambda: layouts.sweep(TINY_GROUPED, phase="decode", context=8, mesh_shape=(2, 2, 2)),
        "takes no mesh_shape=; give chips=, or call layouts.plan",
    )
    assert layouts.sweep("tiny-grouped", phase="decode", context=8, batches=8, chips=8, chip="v5e")
