"""What depends on how many positions a cache has room for: learned positions, and some scalings."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import reference
from layouts.cost.step_cost import cost
from layouts.cost.workload import load
from layouts.models.config import AttentionKind
from layouts.models.named_models import TINY_GROUPED
from layouts.models.params import init
from layouts.models.rotary import DividedScaling, DynamicScaling, LongRopeScaling, Rotary
from layouts.partitionings.partitioning import as_plan

from .models import prompts

LEARNED = dataclasses.replace(TINY_GROUPED, rotary=None, learned_positions=8)
LONGROPE = LongRopeScaling(8, (1.0, 1.1, 1.2, 2.0), (1.0, 1.5, 4.0, 8.0), 1.2)
LONG = dataclasses.replace(TINY_GROUPED, rotary=Rotary(scaling=LONGROPE))
MORE = r"room for 9 positions.*learned_positions=8 is the size of the table"


def test_more_positions_than_the_table_has(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    params = layouts.init(LEARNED, mesh, jax.random.key(0), jnp.float32)
    with pytest.raises(ValueError, match=MORE):
        layouts.init_cache(LEARNED, mesh, 8, 9)
    with pytest.raises(ValueError, match=MORE):
        layouts.generate(LEARNED, mesh, params, np.zeros((8, 4), np.int32), max_new_tokens=5)
    with pytest.raises(ValueError, match=MORE):
        layouts.lower_decode_step(LEARNED, mesh, batch=8, context=9)
    one = layouts.init_cache(LEARNED, mesh, 1, 3, dtype=jnp.float32)
    _, one = layouts.prefill(LEARNED, mesh, params, one, np.zeros((1, 3), np.int32))
    prefix = layouts.shared_prefix(one)
    layouts.init_cache(LEARNED, mesh, 8, 5, prefix=prefix, dtype=jnp.float32)
    with pytest.raises(ValueError, match=MORE):
        layouts.init_cache(LEARNED, mesh, 8, 6, prefix=prefix, dtype=jnp.float32)


@pytest.mark.slow
def test_positions_go_on_behind_a_prefix(mesh_of: Any) -> None:
    mesh, config = mesh_of((2, 2, 2), "xyz"), LEARNED
    params = init(jax.random.key(0), config, jnp.float32)
    placed = jax.device_put(
        params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
    )
    tokens = np.array(prompts(config, 4, 5))
    tokens[:, :3] = tokens[0, :3]
    lengths = jnp.full((4,), 5, jnp.int32)
    wanted, _ = reference.prefill(params, config, jnp.asarray(tokens), lengths, 8)
    one = layouts.init_cache(config, mesh, 1, 3, dtype=jnp.float32)
    _, one = layouts.prefill(config, mesh, placed, one, tokens[:1, :3])
    prefix = layouts.shared_prefix(one)
    cache = layouts.init_cache(config, mesh, 4, 5, prefix=prefix, dtype=jnp.float32)
    found, _ = layouts.prefill(config, mesh, placed, cache, tokens[:, 3:])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=2e-5)


def test_the_table_is_counted() -> None:
    without = dataclasses.replace(LEARNED, learned_positions=None)
    more = LEARNED.parameters - without.parameters
    assert more == 8 * 32
    assert LEARNED.layer_parameters == without.layer_parameters
    plan, sizes = as_plan("WS 2D, heads"), {"x": 2, "y": 2, "z": 2}
    asked = load("decode", batch=8, context=8)
    one, other = (cost(config, plan, sizes, asked, "v5e").memory for config in (LEARNED, without))
    assert one.embedding - other.embedding == 2 * more / 8


def test_a_rotary_embedding_by_room() -> None:
    short, long = LONG.for_room(8), LONG.for_room(9)
    assert short.rotary == Rotary(scaling=DividedScaling(LONGROPE.short, 1.2))
    assert long.rotary == Rotary(scaling=DividedScaling(LONGROPE.long, 1.2))
    assert long.for_room(4) is long
    dynamic = Rotary(base=100.0, scaling=DynamicScaling(2.0, 8))
    kinds = (AttentionKind(window=3, rotary=dynamic), AttentionKind())
    config = dataclasses.replace(TINY_GROUPED, attention_kinds=kinds)
    assert config.for_room(8).kinds[0].rotary == Rotary(base=100.0)
    grown = config.for_room(16).kinds[0].rotary
    assert grown is not None
    assert grown != "model"
    # 2 * 16 / 8 - 1 = 3, and 8 dimensions.
    assert grown.base == pytest.approx(100.0 * 3 ** (8 / 6))
    assert config.for_room(16).rotary == TINY_GROUPED.rotary


def test_refuses_a_prefix_of_another_rotary_embedding(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    shape = (LONG.layers, LONG.stored_kv_heads, 5, LONG.d_head)
    entries = layouts.Entries(jnp.zeros(shape, jnp.float32))
    prefix = layouts.Prefix(entries, entries, 5)
    layouts.init_cache(LONG, mesh, 8, 3, prefix=prefix, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"prefix of 5 .* room for 9 in all differ in the rotary"):
        layouts.init_cache(LONG, mesh, 8, 4, prefix=prefix, dtype=jnp.float32)


def test_a_layer_by_itself_asks_for_the_room(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    weights = jax.tree.map(lambda w: w[0], init(jax.random.key(0), LONG, jnp.float32)["blocks"])
    x = jnp.zeros((8, 2, LONG.d_model), jnp.float32)
    args: Any = ("WS 2D", "heads")
    with pytest.raises(ValueError, match=r"LongRopeScaling depends on .*config\.for_room\(4096\)"):
        layouts.serial_block(x, weights, LONG, *args, mesh=mesh)
    layouts.serial_block(x, weights, LONG.for_room(4096), *args, mesh=mesh)
