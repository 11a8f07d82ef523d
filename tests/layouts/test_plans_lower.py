"""What the planner calls possible lowers, for any model, mesh, batch and length."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

import layouts
from collective_einsum.ruler.compile.targets import target
from layouts.cost.layer_items import Load
from layouts.cost.workload import load, padded_load
from layouts.models.named_models import PALM_540B, TINY_GROUPED
from layouts.tuning import STEP_TILE
from tests.products import mostly_exhaustive

from ..hunts.plans import Asked, draw, lowers

AXES = ("x", "y", "z")
# Options that the tests below go through, each: 250 in most runs, 2,000 in all.
SHARDS, OPTIONS, FEW = range(8), 250, (2,)
# Batches and lengths of one model and mesh, most of which are padded to the same sizes.
BATCHES = LENGTHS = 3


@pytest.mark.tpu
@pytest.mark.parametrize("shard", mostly_exhaustive(SHARDS, FEW))
def test_every_option_lowers(shard: int) -> None:
    """Options of sizes that are padded alike are one program, which is lowered once."""
    rng = np.random.default_rng(shard)
    count = 0
    while count < OPTIONS:
        asked, seen = draw(rng), set[Any]()
        for each in sizes_like(asked, rng):
            for option in each.plan().feasible:
                program = option.feedforward, option.attention, padded(each, option)
                if program not in seen:
                    lowers(each, option)
                seen.add(program)
                count += 1


def sizes_like(asked: Asked, rng: np.random.Generator) -> list[Asked]:
    """The same of other batches and lengths."""
    chips = math.prod(asked.shape)
    most = chips * int(rng.integers(1, 4)), STEP_TILE * int(rng.integers(1, 9))
    batches = most[0] - rng.permutation(chips)[:BATCHES]
    lengths = most[1] - rng.permutation(STEP_TILE)[:LENGTHS]
    return [
        dataclasses.replace(asked, batch=int(batch), length=int(length))
        for batch in batches
        for length in lengths
    ]


def padded(asked: Asked, option: layouts.Option) -> Load:
    """The sizes that a step is computed in."""
    name = "context" if asked.phase == "decode" else "length"
    sizes: dict[str, Any] = {"batch": asked.batch, name: asked.length}
    given = load(asked.phase, **sizes)
    return padded_load(given, asked.config, option.partitioning, option.sizes)


@pytest.mark.parametrize("batch", [1, 3, 7])
@pytest.mark.parametrize("length", [1, 12])
def test_defaults_take_any_prompts(mesh_of: Any, batch: int, length: int) -> None:
    mesh, config = mesh_of((2, 2, 2), AXES), TINY_GROUPED
    params = layouts.init(config, mesh, jax.random.key(0))
    tokens = np.ones((batch, length), np.int32)
    new, counts = layouts.generate(config, mesh, params, tokens, max_new_tokens=2)
    assert new.shape == (batch, 2)
    assert counts.tolist() == [2] * batch


def slice_of(shape: tuple[int, ...]) -> Mesh:
    """Of TPUs that are not there."""
    devices = target("v4:4x4x4").devices[: math.prod(shape)]
    return Mesh(np.array(devices).reshape(shape), AXES)


@pytest.mark.tpu
def test_a_prompt_whose_rows_do_not_divide() -> None:
    """2,032 positions over 16 chips are 127 rows, whose keys are summed over 4."""
    how: dict[str, Any] = {"batch": 1, "length": 2032, "weights": "int8"}
    found = layouts.plan(PALM_540B, mesh_shape=(4, 4, 4), phase="prefill", **how)
    one = dataclasses.replace(PALM_540B, layers=1)
    assert found.best.feedforward == "WS 2D position"
    layouts.lower_prefill(one, slice_of((4, 4, 4)), plan=found.partitioning, **how)


@pytest.mark.tpu
@pytest.mark.parametrize("slice_", ["v4:4x4x4", "tpu7x:2x2x1"])
def test_a_mesh_that_folds_sides(slice_: str) -> None:
    """A mixture of experts, planned over all meshes of a slice of three sides."""
    where = target(slice_)
    assert where.chip is not None
    one = dataclasses.replace(layouts.model("gpt-oss-120b"), layers=2)
    how: dict[str, Any] = {"batch": 64, "context": 2048}
    best = layouts.plan(one, chip=where.chip, chips=len(where.devices), phase="decode", **how).best
    assert best.sizes["x"] == 1
    mesh = where.mesh(tuple(best.sizes.values()), AXES)
    layouts.lower_decode_step(one, mesh, plan=best, **how)


@pytest.mark.tpu
def test_heads_that_do_not_divide_over_x() -> None:
    """PaLM 540B with 64 heads on 48 chips, of which one's 1,024 features do not divide over x=3."""
    how: dict[str, Any] = {"batch": 48, "context": 2048, "weights": "int8"}
    padded = dataclasses.replace(PALM_540B, padded_heads=64)
    found = layouts.plan(padded, mesh_shape=(3, 4, 4), phase="decode", **how)
    why = next(
        o.excluded for o in found.options if (o.feedforward, o.attention) == ("WS 2D", "heads")
    )
    assert "64 heads of d_head=256 have 1024 features of queries" in why
    assert "on each chip after y=4 and z=4, which do not divide over x=3" in why
    mesh, one = slice_of((3, 4, 4)), dataclasses.replace(padded, layers=1)
    for option in found.feasible:
        layouts.lower_decode_step(one, mesh, plan=option.partitioning, **how)
    layouts.lower_decode_step(one, mesh, **how)
    excluded = layouts.Partitioning(layouts.WeightStationary2D(), layouts.HeadSharded())
    with pytest.raises(ValueError, match="do not divide over x=3; use WeightStationary2D"):
        layouts.lower_decode_step(one, mesh, plan=excluded, **how)


@pytest.mark.tpu
@pytest.mark.parametrize("shape", [(5, 1, 1), (1, 5, 1), (1, 1, 5), (3, 1, 5), (7, 1, 1)], ids=str)
def test_odd_meshes(shape: tuple[int, ...]) -> None:
    """Sizes that divide over all chips, and any batch."""
    chips = math.prod(shape)
    config = dataclasses.replace(
        TINY_GROUPED, layers=1, d_model=8 * chips, d_ff=16 * chips, heads=2 * chips, kv_heads=chips
    )
    mesh = slice_of(shape)
    for batch in (2, chips):
        layouts.lower_decode_step(config, mesh, batch=batch, context=9)
        layouts.lower_prefill(config, mesh, batch=batch, length=9)
