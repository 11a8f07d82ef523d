"""Weight-gathered layers whose matrices arrive while they multiply, against those that wait."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
import layouts
from bench.decoder_suite.layers import mesh_of as tpu_mesh
from collective_einsum import TPU_V4
from layouts.cost import streamed_cost as stream_cost
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.decoding import compiled_step as program
from layouts.decoding.decoder import extender
from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    PALM_540B,
    TINY_GEGLU,
    TINY_GROUPED,
    TINY_MULTIHEAD,
    TINY_MULTIQUERY,
)
from layouts.models.params import init
from tests.products import sampled

from .models import name

pytestmark = pytest.mark.slow

SCOPE = "all_gather_fold"
PLANS = (
    (layouts.WeightGathered(("x", "y")), layouts.HeadSharded()),
    (layouts.WeightGathered(), layouts.BatchSharded()),
)
SIZES = {"x": 4, "y": 4, "z": 4}


def one_layer(config: ModelConfig, int8: bool) -> Any:
    blocks = init(jax.random.key(0), config, jnp.float32)["blocks"]
    layer = jax.tree.map(lambda x: x[-1], blocks)
    if not int8:
        return layer
    return {key: ce.quantize(w, 0) if key.startswith("w_") else w for key, w in layer.items()}


@pytest.mark.parametrize(
    ("config", "how"),
    sampled(
        [TINY_GEGLU, TINY_GROUPED, TINY_MULTIHEAD, TINY_MULTIQUERY],
        [(plan, *where) for where in (((2, 2, 2), True), ((1, 4, 2), False)) for plan in PLANS],
        2,
    ),
    ids=name,
)
def test_streaming_changes_nothing(mesh_of: Any, config: ModelConfig, how: Any) -> None:
    plan, shape, int8 = how
    weights, mesh = one_layer(config, int8), mesh_of(shape, "xyz")
    x = jax.random.normal(jax.random.key(1), (8, 3, config.d_model))
    block = layouts.parallel_block if config.block == "parallel" else layouts.serial_block

    def run(schedule: str) -> Any:
        return jax.jit(
            lambda x, w: block(x, w, config, *plan, mesh=mesh, schedule=schedule)[0]
        ).lower(x, weights)

    blocking, streamed = run("blocking"), run("latency")
    assert SCOPE in streamed.as_text(debug_info=True)
    assert SCOPE not in blocking.as_text(debug_info=True)
    np.testing.assert_allclose(
        streamed.compile()(x, weights), blocking.compile()(x, weights), rtol=2e-5, atol=2e-5
    )


@pytest.mark.parametrize("schedule", ["bidirectional", "chunked"])
def test_schedules_that_cut_shards_keep_the_matrices_apart(mesh_of: Any, schedule: str) -> None:
    config, layout = TINY_GEGLU, layouts.WeightGathered()
    weights, mesh = one_layer(config, False), mesh_of((2, 2, 2), "xyz")
    x = jnp.zeros((8, 2, config.d_model))
    lowered = jax.jit(
        lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh, schedule=schedule)
    ).lower(x, weights)
    assert SCOPE not in lowered.as_text(debug_info=True)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("layout", "batch", "streams"),
    [
        (layouts.WeightGathered(), 512, True),
        (layouts.WeightGathered(("x", "y")), 128, True),
        # Few rows: the links are the limit, and lax's gather uses all of them.
        (layouts.WeightGathered(), 4, False),
        # Over x, rows of the matrices are gathered, not columns.
        (layouts.WeightGathered(("x",)), 512, False),
        (layouts.WeightStationary2D(), 512, False),
    ],
    ids=str,
)
def test_auto_streams_where_that_pays(
    layout: Any, batch: int, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = layouts.Partitioning(layout, layouts.BatchSharded())
    asked = load("prefill", batch=batch, length=2048)
    found = cost(PALM_540B, plan, SIZES, asked, TPU_V4)
    out = stream_cost.outgoing(PALM_540B)
    saving = stream_cost.saving(found.items, PALM_540B.input_names, out, SIZES, TPU_V4)
    assert (saving is not None) == streams
    if batch < 64:
        return

    def text() -> str:
        mesh = tpu_mesh("v4:4x4x4")
        lowered = layouts.lower_prefill(PALM_540B, mesh, batch=batch, length=2048, plan=plan)
        return lowered.as_text(debug_info=True)

    # Under its options the compiler runs gathers of whole matrices beside the matmuls before.
    assert SCOPE not in text()
    extender.cache_clear()
    plain = dataclasses.replace(TPU_V4, compiler_options=())
    monkeypatch.setattr(program, "chip_of", lambda mesh: plain)
    assert (SCOPE in text()) == streams
    extender.cache_clear()
