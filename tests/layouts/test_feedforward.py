"""The feedforward layouts against plain jnp, and what they may move."""

from __future__ import annotations

import functools
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
import layouts
from layouts import reference
from layouts.mesh.shard_map_entry import weight_specs_of
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GEGLU, TINY_MULTIHEAD, TINY_MULTIQUERY
from layouts.models.params import init
from layouts.partitionings.param_specs import WEIGHT_SPECS
from tests.products import sampled

from .arrangements import BY_POSITION, FEEDFORWARDS, MESHES
from .models import name

pytestmark = pytest.mark.slow

MODELS = (TINY_MULTIQUERY, TINY_GEGLU, TINY_MULTIHEAD)
LAYOUTS = (*FEEDFORWARDS, BY_POSITION)


@functools.cache
def one_layer(config: ModelConfig, dtype: Any = jnp.float32) -> dict[str, Any]:
    """The feedforward's weights of the last layer."""
    blocks = init(jax.random.key(0), config, dtype)["blocks"]
    return {key: blocks[key][-1] for key in WEIGHT_SPECS if key in blocks}


def activations(config: ModelConfig) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (8, 8, config.d_model))


@pytest.mark.parametrize(
    ("where", "config"), sampled(list(itertools.product(LAYOUTS, MESHES)), MODELS), ids=name
)
def test_equals_the_reference(mesh_of: Any, where: Any, config: Any) -> None:
    layout, shape = where
    weights, x = one_layer(config), activations(config)
    mesh = mesh_of(shape, "xyz")
    y = jax.jit(lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh, schedule="auto"))(
        x, weights
    )
    np.testing.assert_allclose(y, reference.feedforward(x, weights, config), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("schedule", ["latency", "unidirectional", "chunked"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_equals_the_reference_under_every_schedule(
    mesh_of: Any, layout: Any, schedule: str
) -> None:
    config = TINY_GEGLU
    both_ends = layout in (layouts.WeightStationary2D(by_batch=True), BY_POSITION)
    if schedule == "chunked" and both_ends:
        # All of the gathered rows go into each chunk of columns.
        with pytest.raises(
            ValueError, match="no label is given to split into 4 chunks; use a ring"
        ):
            layouts.feedforward(
                activations(config),
                one_layer(config),
                config,
                layout,
                mesh=mesh_of((2, 2, 2), "xyz"),
                schedule=schedule,
            )
        return
    weights, x = one_layer(config), activations(config)
    mesh = mesh_of((2, 2, 2), "xyz")
    y = jax.jit(
        lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh, schedule=schedule)
    )(x, weights)
    np.testing.assert_allclose(y, reference.feedforward(x, weights, config), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_takes_int8_weights(mesh_of: Any, layout: Any) -> None:
    config = TINY_GEGLU
    weights = {
        key: ce.quantize(w, 0) if key.startswith("w_") else w
        for key, w in one_layer(config).items()
    }
    x, mesh = activations(config), mesh_of((2, 2, 2), "xyz")
    y = jax.jit(lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh))(x, weights)
    np.testing.assert_allclose(y, reference.feedforward(x, weights, config), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("names", [("w_gate",), ("w_in", "w_out")], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_takes_int8_weights_among_others(mesh_of: Any, layout: Any, names: Any) -> None:
    """Also those that stand for another dtype than the others have."""
    config = TINY_MULTIQUERY
    weights, x = one_layer(config), activations(config)
    mixed = weights | {name: ce.quantize(weights[name], 0) for name in names}
    mesh = mesh_of((2, 2, 2), "xyz")
    run = jax.jit(lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh))
    expected = reference.feedforward(x, mixed, config)
    np.testing.assert_allclose(run(x, mixed), expected, rtol=2e-5, atol=2e-5)
    others = {name: w.astype(jnp.bfloat16) for name, w in weights.items()}
    y = run(x.astype(jnp.bfloat16), others | {name: mixed[name] for name in names})
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bfloat16_is_as_near_to_the_truth_as_one_device(mesh_of: Any, layout: Any) -> None:
    config = TINY_MULTIQUERY
    weights = one_layer(config, jnp.bfloat16)
    x, mesh = activations(config).astype(jnp.bfloat16), mesh_of((2, 2, 2), "xyz")
    wide_x, wide_w = jax.tree.map(lambda w: w.astype(jnp.float32), (x, weights))
    truth = np.asarray(reference.feedforward(wide_x, wide_w, config))
    error, one_device = (
        np.abs(np.asarray(y, np.float32) - truth).max()
        for y in (
            jax.jit(lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh))(x, weights),
            reference.feedforward(x, weights, config),
        )
    )
    # Partial sums are rounded once more for every device they pass.
    assert one_device > 0
    assert error < 4 * one_device


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_runs_inside_a_shard_map_of_the_user(mesh_of: Any, layout: Any) -> None:
    config = TINY_MULTIQUERY
    weights, x, mesh = one_layer(config), activations(config), mesh_of((2, 2, 2), "xyz")
    spec = layouts.activation_spec(layout)
    run = jax.shard_map(
        lambda x, w: 2 * layouts.feedforward(x, w, config, layout),
        mesh=mesh,
        in_specs=(spec, weight_specs_of(weights, WEIGHT_SPECS)),
        out_specs=spec,
    )
    y = jax.jit(run)(x, weights)
    expected = 2 * reference.feedforward(x, weights, config)
    np.testing.assert_allclose(y, expected, rtol=2e-5, atol=2e-5)


def test_stationary_weights_do_not_move(mesh_of: Any) -> None:
    """No collective of a stationary layout has a weight's size; those of a gathered one do."""
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    weights = one_layer(config)
    x = jax.random.normal(jax.random.key(1), (8, 1, config.d_model))

    def largest(layout: Any) -> int:
        text = (
            jax.jit(
                lambda x, w: layouts.feedforward(
                    x, w, config, layout, mesh=mesh, schedule="blocking"
                )
            )
            .lower(x, weights)
            .compile()
            .as_text()
            or ""
        )
        found = re.findall(
            r"f32\[([\d,]+)\]\S* (?:all-gather|all-reduce|reduce-scatter|all-to-all)\(", text
        )
        assert found
        return max(int(np.prod([int(n) for n in dims.split(",")])) for dims in found)

    a_shard = config.d_model * config.d_ff // 8
    assert largest(layouts.WeightStationary1D()) <= 8 * config.d_ff // 4 < a_shard * 2
    assert largest(layouts.WeightStationary2D()) <= 8 * config.d_ff // 4
    assert largest(layouts.WeightGathered(("x", "y", "z"))) >= 8 * a_shard


def test_refuses_axes_in_words(mesh_of: Any) -> None:
    with pytest.raises(ValueError, match=r'gathered over x first: choose \("x",\)'):
        layouts.WeightGathered(("y",))
    with pytest.raises(ValueError, match=r"inside a shard_map over .*'x' is not manual here"):
        layouts.feedforward(
            activations(TINY_MULTIQUERY),
            one_layer(TINY_MULTIQUERY),
            TINY_MULTIQUERY,
            layouts.WeightStationary2D(),
        )
    with pytest.raises(ValueError, match=r"mesh with the axes .*got \('a', 'b', 'c'\)"):
        layouts.feedforward(
            activations(TINY_MULTIQUERY),
            one_layer(TINY_MULTIQUERY),
            TINY_MULTIQUERY,
            layouts.WeightStationary2D(),
            mesh=mesh_of((2, 2, 2), "abc"),
        )


def test_specs() -> None:
    assert layouts.activation_spec(layouts.WeightStationary2D()) == P(None, None, ("x", "y", "z"))
    by_batch = layouts.WeightStationary2D(by_batch=True)
    assert layouts.activation_spec(by_batch) == P(("y", "z"), None, ("x",))
    whole = layouts.WeightStationary2D(by_batch=True, all_reduce=True)
    assert layouts.activation_spec(whole) == P(None, None, ("x",))
    with pytest.raises(ValueError, match="sharded by batch inside of them; add by_batch=True"):
        layouts.WeightStationary2D(all_reduce=True)
    assert layouts.activation_spec(layouts.WeightGathered(("x",))) == P(("x",), None, ("y", "z"))
    assert layouts.activation_spec(layouts.WeightGathered()) == P(("x", "y", "z"), None, None)
