"""A feedforward in two parts of its hidden dimension, against the whole, and what hides behind what."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
import layouts
from bench.decoder_suite.layers import mesh_of as tpu_mesh
from collective_einsum import TPU_V4, TPU_V5P
from collective_einsum.ruler.replay.simulation import replay
from layouts import reference
from layouts.cost import einsum_cost
from layouts.cost import two_part_cost as parts_cost
from layouts.cost.layer_items import Einsum
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.layers import two_part_feedforward as parts
from layouts.models.named_models import PALM_540B, TINY_GEGLU, TINY_MULTIHEAD
from layouts.models.params import init
from layouts.partitionings.param_specs import WEIGHT_SPECS
from layouts.planning import schedule_layers

pytestmark = pytest.mark.slow

BY_BATCH = layouts.WeightStationary2D(by_batch=True)
BY_POSITION = layouts.WeightStationary2D(by_position=True)
# Gated, with biases.
GATED = TINY_GEGLU
V4 = TPU_V4.under_options()


def one_layer(config: Any, dtype: Any = jnp.float32) -> dict[str, Any]:
    blocks = init(jax.random.key(0), config, jnp.float32)["blocks"]
    weights = {key: blocks[key][-1] for key in WEIGHT_SPECS if key in blocks}
    # Biases begin as zeros, with which a wrong column is right.
    weights = {
        key: jax.random.normal(jax.random.key(i), w.shape) if key.startswith("b_") else w
        for i, (key, w) in enumerate(weights.items())
    }
    if dtype != jnp.int8:
        return {key: w.astype(dtype) for key, w in weights.items()}
    return {key: ce.quantize(w, 0) if key.startswith("w_") else w for key, w in weights.items()}


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 2, 1), (2, 1, 3), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("layout", [BY_BATCH, BY_POSITION], ids=str)
def test_equals_the_reference_and_its_gradient(
    mesh_of: Any, layout: Any, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule_layers, "_splits_d_ff", lambda *_: True)
    config = dataclasses.replace(GATED, d_model=24, d_ff=72)
    weights, mesh = one_layer(config), mesh_of(shape, "xyz")
    x = jax.random.normal(jax.random.key(1), (12, 12, config.d_model))

    def ours(x: Any, w: Any) -> Any:
        return layouts.feedforward(x, w, config, layout, mesh=mesh)

    def whole(x: Any, w: Any) -> Any:
        return reference.feedforward(x, w, config)

    lowered = jax.jit(ours).lower(x, weights)
    assert parts.SCOPE in lowered.as_text(debug_info=True)
    y = lowered.compile()(x, weights)
    np.testing.assert_allclose(y, whole(x, weights), rtol=2e-5, atol=2e-5)

    def gradient(function: Any) -> Any:
        return jax.jit(jax.grad(lambda w: jnp.sum(jnp.sin(function(x, w)))))(weights)

    found, expected = gradient(ours), gradient(whole)
    for key in weights:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-4)


def test_a_serial_block_takes_them(mesh_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, mesh = dataclasses.replace(GATED, block="serial"), mesh_of((2, 2, 2), "xyz")
    blocks = init(jax.random.key(0), config, jnp.float32)["blocks"]
    weights = jax.tree.map(lambda w: w[-1], blocks)
    x = jax.random.normal(jax.random.key(1), (8, 3, config.d_model))

    def run(taken: bool) -> Any:
        monkeypatch.setattr(schedule_layers, "_splits_d_ff", lambda *_: taken)
        jax.clear_caches()
        attention = layouts.BatchSharded(("x", "y", "z"))
        lowered = jax.jit(
            lambda x, w: layouts.serial_block(x, w, config, BY_BATCH, attention, mesh=mesh)[0]
        ).lower(x, weights)
        assert (parts.SCOPE in lowered.as_text(debug_info=True)) == taken
        return lowered.compile()(x, weights)

    np.testing.assert_allclose(run(True), run(False), rtol=2e-5, atol=2e-5)


def lowered_on_tpu(
    rows: int, config: Any = PALM_540B, layout: Any = BY_BATCH, schedule: Any = "auto"
) -> tuple[Any, Any]:
    """A feedforward by itself, of bfloat16, for a TPU v4 that is not there."""
    mesh = tpu_mesh("v4:4x4x4")
    sizes = {"w_in": "ef", "w_gate": "ef", "w_out": "fe"}
    length = {"e": config.d_model, "f": config.d_ff}

    def array(shape: Any, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))

    weights = {
        key: array([length[c] for c in labels], WEIGHT_SPECS[key])
        for key, labels in sizes.items()
        if config.gated or key != "w_gate"
    }
    x = array((rows, 1, config.d_model), layouts.activation_spec(layout))
    run = ce.jit(
        lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh, schedule=schedule),
        chip=TPU_V4,
    )
    return run.lower(x, weights), mesh


def test_only_the_ends_are_waited_for() -> None:
    """Of what goes over x, no more than a tenth; and the model knows what it takes."""
    lowered, mesh = lowered_on_tpu(512)
    timeline = replay(lowered.compile(compiler_options=ce.compiler_options(TPU_V4)), mesh)
    of = rows_of(512)
    ends = 2 * parts_cost.all_gather_seconds(V4, [4, 4], 2 * 512 * 4608)
    over_x = sum(event.seconds for event in timeline.events if event.row == "x+")
    assert over_x > 2 * ends
    assert timeline.exposed_seconds - ends < 0.1 * over_x
    assert timeline.total_seconds == pytest.approx(parts_cost.split_seconds(of), rel=0.1)


def rows_of(rows: int, x: int = 4, chip: ce.Chip = V4) -> parts_cost.TokenShardedFeedForward:
    return parts_cost.TokenShardedFeedForward(
        tokens=rows, d_model=4608, d_ff=4608, inputs=2, x=(x,), yz=(4, 4), chip=chip
    )


@pytest.mark.parametrize(
    "of",
    [
        rows_of(512, x=1),
        rows_of(64),
        rows_of(512, chip=TPU_V4),
        rows_of(512, chip=TPU_V5P.under_options()),
        dataclasses.replace(rows_of(512), d_ff=1024),
    ],
    ids=["nothing to scatter", "no whole tiles", "no options", "no such options", "too narrow"],
)
def test_what_is_not_cut(of: parts_cost.TokenShardedFeedForward) -> None:
    assert parts_cost.split_seconds(of) is None


def test_more_rows_take_longer_and_less_than_whole() -> None:
    seconds = [parts_cost.split_seconds(rows_of(rows)) for rows in (256, 512, 2048)]
    assert all(found is not None for found in seconds)
    assert seconds == sorted(seconds, key=lambda found: found or 0.0)
    for rows, found in zip((256, 512, 2048), seconds, strict=True):
        assert found is not None
        assert found < parts_cost.unsplit_seconds(rows_of(rows))


@pytest.mark.parametrize(
    ("rows", "change", "taken"),
    [
        (512, {}, True),
        (512, {"layout": layouts.WeightStationary2D()}, False),
        (512, {"schedule": "latency"}, False),
        (512, {"config": dataclasses.replace(PALM_540B, gated=False)}, False),
        (64, {}, False),
    ],
    ids=["rows", "columns", "a schedule by name", "one input matrix", "few rows"],
)
def test_auto_takes_them_where_they_pay(rows: int, change: Any, taken: bool) -> None:
    lowered, _ = lowered_on_tpu(rows, **change)
    assert (parts.SCOPE in lowered.as_text(debug_info=True)) == taken


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int8], ids=str)
def test_only_bfloat16_is_cut(mesh_of: Any, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of others the model knows too little."""
    monkeypatch.setattr(parts_cost, "saving", lambda *_: 1.0)
    x = jnp.zeros((8, 3, GATED.d_model), jnp.float32 if dtype == jnp.int8 else dtype)
    lowered = jax.jit(
        lambda x, w: layouts.feedforward(x, w, GATED, BY_BATCH, mesh=mesh_of((2, 2, 2), "xyz"))
    ).lower(x, one_layer(GATED, dtype))
    assert (parts.SCOPE in lowered.as_text(debug_info=True)) == (dtype == jnp.bfloat16)


def test_a_matrix_that_is_not_gated_is_no_pair(
    mesh_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the model would say that two parts pay."""
    monkeypatch.setattr(parts_cost, "saving", lambda *_: 1.0)
    weights = one_layer(TINY_MULTIHEAD, jnp.bfloat16)
    x = jnp.zeros((8, 3, TINY_MULTIHEAD.d_model), jnp.bfloat16)
    lowered = jax.jit(
        lambda x, w: layouts.feedforward(
            x, w, TINY_MULTIHEAD, BY_BATCH, mesh=mesh_of((2, 2, 2), "xyz")
        )
    ).lower(x, weights)
    assert parts.SCOPE not in lowered.as_text(debug_info=True)


def test_the_planner_knows_of_them() -> None:
    """A layer costs less by what its feedforward saves, and only where it comes in parts."""
    plan = layouts.Partitioning(BY_BATCH, layouts.BatchSharded(("x", "y", "z")))
    sizes = {"x": 4, "y": 4, "z": 4}
    serial = dataclasses.replace(PALM_540B, block="serial")

    def asked(config: Any, batch: int = 512, weights: Any = "bf16") -> Any:
        found = load("decode", batch=batch, context=2048, weights=weights)
        return cost(config, plan, sizes, found, TPU_V4)

    def saved(config: Any, **how: Any) -> float:
        return parts_cost.layer_saving(config, asked(config, **how).items, sizes, V4)

    feedforward = [
        einsum_cost.seconds(item, sizes, V4, "auto")
        for item in asked(serial).items
        if isinstance(item, Einsum) and item.names in (("w_in", "w_gate"), ("w_out",))
    ]
    assert len(feedforward) == 2
    in_parts = parts_cost.split_seconds(rows_of(512))
    assert in_parts is not None
    assert saved(serial) == pytest.approx(sum(map(sum, feedforward)) - in_parts)
    # What the replay waits less for: 451 us become 398.
    assert saved(serial) == pytest.approx(451e-6 - 398e-6, rel=0.5)
    assert saved(PALM_540B) == saved(serial, batch=64) == saved(serial, weights="int8") == 0
