"""Plans, layouts, configs: taken as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import collective_einsum as ce
import layouts
from layouts.cost.layer_work import layer_work
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.models.named_models import TINY_GROUPED
from layouts.partitionings.named_layouts import ATTENTIONS, FEEDFORWARDS
from layouts.partitionings.partitioning import as_plan

from .room import BATCH, PLAN, SIZES, Room, refuses

pytestmark = pytest.mark.slow


def takers(room: Room) -> Iterator[Callable[[Any], Any]]:
    """Everything that takes a plan, and does not run for long."""
    asked = load("decode", batch=BATCH, context=8)
    lowered: dict[str, Any] = {"batch": BATCH, "schedule": "blocking"}
    config, mesh = TINY_GROUPED, room.mesh
    yield lambda plan: room.cache(plan=plan)
    yield lambda plan: layouts.move_cache(config, mesh, room.cache(), plan)
    yield lambda plan: layouts.cache_specs(config, mesh, plan, room.cache())
    yield lambda plan: layouts.lower_decode_step(config, mesh, context=8, plan=plan, **lowered)
    yield lambda plan: layouts.lower_prefill(config, mesh, length=8, plan=plan, **lowered)
    yield lambda plan: cost(config, plan, SIZES, asked, ce.TPU_V4)
    yield lambda plan: layer_work(config, plan, SIZES, asked)


@pytest.mark.parametrize("feedforward", FEEDFORWARDS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_planners_words(feedforward: str, attention: str) -> None:
    wanted = layouts.Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
    words = f"{feedforward}, {attention}"
    for each in (words, words.lower(), words + ", 4x4x4, batch 64", words.replace(" ", "  ")):
        assert as_plan(each) == wanted
    assert layouts.Partitioning(feedforward, attention) == wanted


def test_what_the_planner_returns_and_prints_is_a_plan(room: Room) -> None:
    found = layouts.plan("tiny-grouped", mesh_shape=(2, 2, 2), phase="decode", batch=8, context=8)
    assert as_plan(found) == found.partitioning
    for option in found.options:
        assert as_plan(option) == as_plan(str(option)) == option.partitioning
    row = str(found).splitlines()[2]
    assert row.startswith(f"{found.best.feedforward}, {found.best.attention} ")
    for take in takers(room):
        for each in (found, found.best, str(found.best)):
            take(each)
    wanted = room.decode(plan=found.partitioning)[0]
    for each in (found, found.best, str(found.best)):
        np.testing.assert_array_equal(room.decode(plan=each)[0], wanted)


def test_a_plan_in_which_nothing_is_feasible_says_so(room: Room) -> None:
    none = layouts.plan(
        TINY_GROUPED, mesh_shape=SIZES, phase="decode", batch=8, context=8, max_seconds=1e-9
    )
    refuses(
        lambda: room.cache(plan=none), "no layout of tiny-grouped will do for this decode within"
    )


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (layouts.WeightStationary1D(), "that is a feedforward layout alone; write "),
        (
            layouts.WeightStationary1D,
            "write layouts.Partitioning(WeightStationary1D(), HeadSharded())",
        ),
        (layouts.HeadSharded(), "write layouts.Partitioning(WeightStationary2D(), HeadSharded())"),
        (layouts.Partitioning, "is no Partitioning: write layouts.Partitioning("),
        ("WS 2D all-reduce", "such as 'WS 2D all-reduce, heads'"),
        ("heads", "must name a feedforward layout and an attention layout"),
        (
            "WS 2D all-reduc, heads",
            "no feedforward layout is called 'WS 2D all-reduc'; there are 'WS 2D', ",
        ),
        ("WS 2D all-reduc, heads", "; did you mean 'WS 2D all-reduce'?"),
        ("WS 1D, bach xyz", "no attention layout is called 'bach xyz'"),
        ("WS 1D, bach xyz", "; did you mean 'batch xyz'?"),
        ("heads, WS 2D", "no feedforward layout is called 'heads'"),
        ({"feedforward": "WS 2D"}, "is no Partitioning: write layouts.Partitioning("),
        (3, 'or in the planner\'s words "WS 2D, heads"'),
    ],
)
def test_what_is_no_plan(room: Room, plan: Any, words: str) -> None:
    for take in takers(room):
        refuses(lambda take=take: take(plan), words)
    for call in (room.prefill, room.decode, room.generate):
        refuses(lambda call=call: call(plan=plan), words)
    refuses(lambda: room.generate(prefill_plan=plan), words)


def test_a_pair_of_layouts() -> None:
    pair: Any = layouts.Partitioning
    swapped = "the feedforward layout comes first; write Partitioning(WeightStationary1D(), HeadSh"
    refuses(lambda: pair(layouts.HeadSharded(), layouts.WeightStationary1D()), swapped)
    assert pair(layouts.WeightStationary2D, layouts.BatchSharded) == PLAN
    one, head = layouts.WeightStationary1D(), layouts.HeadSharded()
    refuses(lambda: pair(one, one), "is no attention layout, but a feedforward layout")
    refuses(lambda: pair(head, head), "is no feedforward layout, but an attention layout")
    refuses(lambda: pair(PLAN, head), "is no feedforward layout, but Partitioning with both")
    refuses(
        lambda: pair(None, head), "None is no feedforward layout; choose WeightStationary1D(), "
    )
    refuses(lambda: pair(one, 3), "3 is no attention layout; choose HeadSharded()")
    refuses(lambda: layouts.activation_spec(PLAN), "is no feedforward layout")
    assert layouts.activation_spec(layouts.WeightStationary1D) == layouts.activation_spec(one)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layouts.BatchSharded(3), 'choose ("z",), ("y", "z") or ("x", "y", "z")'),
        (lambda: layouts.BatchSharded("xyz"), 'choose ("z",), ("y", "z") or ("x", "y", "z")'),
        (lambda: layouts.WeightGathered(None), 'choose ("x",), ("x", "y") or ("x", "y", "z")'),
        (lambda: layouts.WeightStationary2D("batch"), "by_batch='batch' must be True or False"),
        (lambda: layouts.WeightStationary2D(True, 1), "all_reduce=1 must be True or False"),
        (lambda: layouts.Rotary("1e4"), "rotary base='1e4' must be a number"),
        (lambda: layouts.Rotary(fraction=True), "rotary fraction=True must be a number"),
        (lambda: layouts.Rotary(interleaved="no"), "interleaved='no' must be True or False"),
    ],
)
def test_settings_of_layouts_and_rotary(make: Any, words: str) -> None:
    refuses(make, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": "Serial"}, "; did you mean 'serial'?"),
        ({"activation": "gelu-tanh"}, "; did you mean 'gelu_tanh'?"),
        ({"norm": "rms_norm"}, "; did you mean 'rmsnorm'?"),
        ({"gated": "yes"}, "gated='yes' must be True or False"),
        ({"rotary": True}, "rotary=True must be a Rotary() or None"),
        ({"rotary": layouts.Rotary}, "must be a Rotary() or None"),
        ({"norm_epsilon": "1e-6"}, "norm_epsilon='1e-6' must be positive"),
        ({"heads": 8.0}, "heads=8.0 must be a positive integer; write 8"),
    ],
)
def test_fields_of_a_config(change: Any, words: str) -> None:
    refuses(lambda: dataclasses.replace(TINY_GROUPED, **change), words)


def test_numpys_floats_are_numbers() -> None:
    rotary = layouts.Rotary(np.float32(1e4), np.float32(0.5))
    config = dataclasses.replace(TINY_GROUPED, rotary=rotary, norm_epsilon=np.float32(1e-6))
    assert config.rotary_dims == 4
