"""Which meshes hold a model, and that advice which is followed is accepted."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from typing import Any

import numpy as np
import pytest

import layouts
from layouts import ModelConfig
from layouts.mesh.axis_collectives import AXES
from layouts.models.named_models import PALM_540B, TINY_GROUPED
from layouts.partitionings.mesh_fit import model_misfit
from layouts.partitionings.partitioning import misfit
from layouts.planning.search import ATTENTIONS, FEEDFORWARDS

GROUPED = dataclasses.replace(TINY_GROUPED, d_model=5120, d_ff=13824, heads=40, kv_heads=10)


def sizes_of(shape: Any) -> dict[str, int]:
    return dict(zip(AXES, map(int, shape), strict=True))


def test_padded_heads_are_those_that_the_config_takes() -> None:
    """40 heads of 10 groups over 16 chips: 48 divide over them, but not over the groups."""
    why = model_misfit(GROUPED, {"x": 4, "y": 4, "z": 4})
    assert "40 heads do not divide over y=4 times z=4; set padded_heads=80" in why
    assert not model_misfit(dataclasses.replace(GROUPED, padded_heads=80), sizes_of((4, 4, 4)))


def test_zeros_are_no_way_to_a_wider_d_model() -> None:
    why = model_misfit(PALM_540B, sizes_of((5, 4, 4)))
    assert "d_model=18432 does not divide over the 80 chips of a mesh 5x4x4" in why
    assert "pad" not in why
    assert "a mesh such as 4x4x4" in why


@pytest.mark.parametrize("seed", range(200))
def test_advice_that_is_followed_is_accepted(seed: int) -> None:
    """Every piece of it by itself: a mesh, zeros in d_ff, padded heads, and other layouts."""
    rng = np.random.default_rng(seed)
    shape = sizes_of(rng.choice([1, 2, 3, 4, 5, 6, 8], 3))
    chips = math.prod(shape.values())
    kv_heads = int(rng.integers(1, 8))
    config = dataclasses.replace(
        TINY_GROUPED,
        d_model=chips * 2 if rng.random() < 0.7 else int(rng.integers(1, 200)),
        d_ff=chips * 3 if rng.random() < 0.5 else int(rng.integers(1, 200)),
        heads=kv_heads * int(rng.integers(1, 8)),
        kv_heads=kv_heads,
        d_head=int(rng.integers(1, 8)),
        rotary=None,
    )
    for feedforward, attention in itertools.product(FEEDFORWARDS.values(), ATTENTIONS.values()):
        plan = layouts.Partitioning(feedforward, attention)
        why = misfit(config, shape, plan)
        if why:
            assert any(re.search(r"=\d|shards positions", part) for part in why.split("; ")[:1]), (
                why
            )
            followed = list(follow(why, config, shape, plan))
            assert followed
            for again in followed:
                assert not misfit(*again), (why, again)


def follow(why: str, config: ModelConfig, sizes: Any, plan: Any) -> Any:
    """What is tried next, for each piece of advice. A mesh may leave the layouts to be chosen."""
    advice = why.split("; ", 1)[1]
    by_batch = layouts.WeightStationary2D(by_batch=True)
    if found := re.search(r"mesh such as (\d+)x(\d+)x(\d+)", advice):
        yield config, sizes_of(found.groups()), dataclasses.replace(plan, feedforward=by_batch)
    if found := re.search(r"(d_ff with zeros to |padded_heads=)(\d+)", advice):
        field = "d_ff" if "d_ff" in found[1] else "padded_heads"
        changed = dataclasses.replace(config, **{field: int(found[2])})
        again = model_misfit(changed, sizes)
        # Heads are looked at after widths.
        if field == "d_ff" and again:
            assert "heads do not divide" in again
        else:
            assert not again
            yield changed, sizes, dataclasses.replace(plan, feedforward=by_batch)
    if "WeightStationary2D(by_batch=True)" in advice:
        yield config, sizes, dataclasses.replace(plan, feedforward=by_batch)
    if 'BatchSharded(("x", "y", "z"))' in advice:
        yield config, sizes, dataclasses.replace(plan, attention=layouts.BatchSharded())
    if "HeadSharded()" in advice:
        yield config, sizes, dataclasses.replace(plan, attention=layouts.HeadSharded())


def test_odd_meshes_hold_what_divides() -> None:
    """PaLM 540B with 64 heads on 48 chips, of which one's 1,024 features do not divide over x=3."""
    padded = dataclasses.replace(PALM_540B, padded_heads=64)
    for shape, excluded in (((3, 4, 4), "x=3"), ((4, 3, 4), "64 heads"), ((4, 4, 3), "64 heads")):
        found = layouts.plan(padded, mesh_shape=shape, phase="decode", batch=64, context=2048)
        assert any(excluded in option.excluded for option in found.options)
        assert bool(found.feasible) == (shape == (3, 4, 4))
    five = dataclasses.replace(TINY_GROUPED, d_model=40, d_ff=80, heads=10, kv_heads=5)
    for shape in itertools.permutations((1, 1, 5)):
        assert layouts.plan(five, mesh_shape=shape, phase="decode", batch=5, context=8).feasible
