"""Layers whose parameters are arrays of their own: the same numbers, and weights that come early."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
import layouts
from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo.shapes import Shape
from collective_einsum.ruler.replay.simulation import replay
from layouts.models.config import ModelConfig
from layouts.models.head_padding import pad_heads
from layouts.models.named_models import PALM_540B, TINY_GROUPED, TINY_PADDED
from layouts.models.open_models import LLAMA_31_70B
from layouts.models.param_checks import check_params
from layouts.models.params import init as draw
from layouts.models.stacked_params import is_unrolled, layer_of, unroll

from .models import prompts

pytestmark = pytest.mark.slow

BATCH, LENGTH, ROOM = 8, 4, 8
PLAN = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
SMALL = dataclasses.replace(
    PALM_540B, layers=4, d_model=4096, d_ff=16384, heads=12, padded_heads=16, vocab=4096
)


def steps(config: ModelConfig, mesh: Any, params: Any, plan: Any = PLAN) -> list[np.ndarray]:
    """Logits of a prefill, of a chunk after it, and of a step of decoding."""
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
    found = []
    for chunk in (prompts(config, BATCH, LENGTH), prompts(config, BATCH, 2, seed=1)):
        logits, cache = layouts.prefill(config, mesh, params, cache, chunk, plan=plan)
        found.append(np.asarray(logits))
    token = prompts(config, 1, BATCH, seed=2)[0]
    logits, cache = layouts.decode_step(config, mesh, params, cache, token, plan=plan)
    return [*found, np.asarray(logits), np.asarray(cache.k.values)]


@pytest.mark.parametrize(
    ("config", "weights"), [(TINY_PADDED, "int8"), (TINY_GROUPED, "plain")], ids=["int8", "plain"]
)
def test_the_same_numbers(mesh_of: Any, config: ModelConfig, weights: str) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    stacked, unrolled = (
        layouts.init(config, mesh, jax.random.key(0), jnp.float32, weights=weights, unrolled=how)
        for how in (False, True)
    )
    assert is_unrolled(unrolled)
    assert not is_unrolled(stacked)
    assert len(unrolled["blocks"]) == config.layers
    for layer in range(config.layers):
        same = jax.tree.map(
            np.array_equal, unrolled["blocks"][layer], layer_of(stacked["blocks"], layer)
        )
        assert all(jax.tree.leaves(same))
    specs = layouts.param_specs(config, mesh, unrolled)
    for x, sharding in zip(
        jax.tree.leaves(unrolled), jax.tree.leaves(layouts.shardings(mesh, specs)), strict=True
    ):
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    for one, other in zip(steps(config, mesh, unrolled), steps(config, mesh, stacked), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_generates_the_same_tokens(mesh_of: Any) -> None:
    mesh, config = mesh_of((2, 2, 2), "xyz"), TINY_PADDED
    found = [
        layouts.generate(
            config,
            mesh,
            layouts.init(config, mesh, jax.random.key(0), jnp.float32, unrolled=unrolled),
            prompts(config, BATCH, LENGTH),
            max_new_tokens=4,
            plan=PLAN,
        )[0]
        for unrolled in (False, True)
    ]
    one, other = map(np.asarray, found)
    assert np.array_equal(one, other)


def test_stacked_arrays_are_unrolled() -> None:
    params = draw(jax.random.key(0), TINY_PADDED, jnp.float32)
    found = unroll(params)
    check_params(found, TINY_PADDED)
    assert unroll(found) is found
    assert found["embedding"] is params["embedding"]
    assert np.array_equal(found["blocks"][1]["w_in"], params["blocks"]["w_in"][1])


def test_heads_are_padded_in_each_layer() -> None:
    padded = dataclasses.replace(TINY_GROUPED, heads=6, padded_heads=8)
    bare = dataclasses.replace(padded, padded_heads=None)
    params = draw(jax.random.key(0), bare, jnp.float32)
    one, other = pad_heads(unroll(params), padded), unroll(pad_heads(params, padded))
    check_params(one, padded)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_another_number_of_layers_is_refused() -> None:
    params = unroll(draw(jax.random.key(0), TINY_PADDED, jnp.float32))
    few = params | {"blocks": params["blocks"][:1]}
    with pytest.raises(ValueError, match=r"blocks of 1 layers, but the config has"):
        check_params(few, TINY_PADDED)
    broken = params | {"blocks": [params["blocks"][0], {}, *params["blocks"][2:]]}
    with pytest.raises(ValueError, match=r"params lack 'blocks/\[1\]/norm/scale'"):
        check_params(broken, TINY_PADDED)


@functools.cache
def compiled(unrolled: bool, batch: int = 16, context: int = 512) -> str:
    mesh = target("v4:2x2x2").mesh((2, 2, 2), ("x", "y", "z"))
    lowered = layouts.lower_decode_step(
        SMALL, mesh, batch=batch, context=context, plan=PLAN, unrolled=unrolled
    )
    text = lowered.compile().as_text()
    assert text is not None
    return text


def share_in_flight(text: str) -> float:
    """Elements of arrays that come into on-chip memory, whole or in slices, while something else runs,
    over those of the layers' weights."""
    module = hlo.parse(text)
    weights = sum(
        parameter.shape.size
        for parameter in module.entry.parameters
        if isinstance(parameter.shape, Shape) and "blocks" in parameter.op_name
    )
    ahead = 0
    for computation in module.computations.values():
        places = {name: place for place, name in enumerate(computation.instructions)}
        for op in computation:
            if op.opcode in ("copy-done", "slice-done") and isinstance(op.shape, Shape):
                ahead += op.shape.size * (places[op.name] - places[op.operands[0]] > 1)
    return ahead / weights


@pytest.mark.tpu
def test_weights_are_streamed_ahead() -> None:
    assert share_in_flight(compiled(unrolled=True)) > 0.8
    assert share_in_flight(compiled(unrolled=False)) < 0.05
    mesh = target("v4:2x2x2").mesh((2, 2, 2), ("x", "y", "z"))
    fast, slow = (replay(compiled(how), mesh).total_seconds for how in (True, False))
    assert fast < 0.9 * slow


@pytest.mark.tpu
def test_weights_arrive_while_collectives_are_under_way() -> None:
    """Of few sequences, whose dots take no longer than their weights from HBM."""
    mesh = target("v6e:4x4").mesh((1, 4, 4), ("x", "y", "z"))
    config = dataclasses.replace(LLAMA_31_70B, layers=12)

    def waiting(chip: ce.Chip) -> tuple[float, float]:
        """The step's seconds, and those in which a chip waits for its own memory."""
        lowered = layouts.lower_decode_step(
            config,
            mesh,
            batch=32,
            context=4096,
            plan="WS 2D all-reduce, batch z",
            unrolled=True,
            chip=chip,
        )
        timeline = replay(lowered.compile(), mesh)
        waits = [event for event in timeline.events if (event.row, event.kind) == ("stall", "copy")]
        return timeline.total_seconds, sum(event.seconds for event in waits)

    late = dataclasses.replace(ce.TPU_V6E, weights_ahead_options=())
    (seconds, waits), (late_seconds, late_waits) = waiting(ce.TPU_V6E), waiting(late)
    assert seconds < 0.95 * late_seconds
    assert waits < 0.5 * late_waits


@pytest.mark.tpu
def test_the_cache_is_not_copied() -> None:
    # More than on-chip memory holds.
    shape = f"[{SMALL.layers},{64 // 8},1,8192,256]"
    text = compiled(unrolled=True, batch=64, context=8192)
    assert shape in text
    assert not [line for line in text.splitlines() if shape in line and " copy(" in line]
