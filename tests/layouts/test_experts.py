"""Mixtures of experts: sharded against the reference, and the reference against loops over tokens."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from layouts import Experts, reference
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED
from layouts.models.params import init, quantize
from layouts.partitionings.mesh_fit import model_misfit

from .models import prompts

BATCH, LENGTH, ROOM = 8, 4, 7
LENGTHS = np.array([4, 1, 3, 2, 4, 1, 2, 3], np.int32)
# Whole experts on a chip; experts that share a chip in part, with all biases; experts on two chips; a
# parallel block; and a feedforward beside the experts, in both kinds of block.
FOUR = dataclasses.replace(TINY_GROUPED, d_ff=16, experts=Experts(4, 2))
SIX = dataclasses.replace(
    TINY_GROUPED,
    d_ff=8,
    biases=("in", "gate", "out"),
    experts=Experts(6, 3, probabilities="all", router_bias=True),
)
TWO = dataclasses.replace(TINY_GROUPED, d_ff=16, experts=Experts(2, 1, probabilities="all"))
BESIDE = dataclasses.replace(TINY_PADDED, d_ff=8, experts=Experts(8, 2))
SHARED = dataclasses.replace(
    FOUR, experts=Experts(4, 2, probabilities="all", shared_width=24, shared_router=True)
)
CONFIGS = {
    "four": FOUR,
    "six": SIX,
    "two": TWO,
    "beside": BESIDE,
    "shared": SHARED,
    "shared beside": dataclasses.replace(BESIDE, experts=Experts(8, 2, shared_width=16)),
}
# A config, its weights, whether layers are unrolled, a mesh and a plan.
ARRANGED = [
    ("four", "f32", False, (2, 2, 2), "WS 2D, heads"),
    ("six", "f32", True, (2, 2, 2), "WG XY, batch xyz"),
    ("beside", "int8", False, (1, 4, 2), "WS 2D batch, batch xyz"),
    ("shared", "f32", False, (2, 2, 2), "WS 2D, heads"),
]
MORE = [
    ("six", "f32", False, (1, 4, 2), "WS 2D, heads"),
    ("six", "int8", False, (2, 2, 2), "WS 2D, batch z"),
    ("six", "f32", False, (4, 2, 1), "WS 2D batch, heads"),
    ("two", "f32", False, (1, 1, 8), "WS 1D, heads"),
    ("six", "f32", False, (8, 1, 1), "WS 1D, batch xyz"),
    ("four", "int8", True, (2, 2, 2), "WS 2D all-reduce, batch xyz"),
    ("six", "f32", False, (2, 1, 4), "WS 2D all-reduce, heads"),
    ("beside", "f32", False, (2, 2, 2), "WS 2D position, heads"),
    ("six", "f32", False, (2, 2, 2), "WS 2D position, heads"),
    ("six", "f32", False, (2, 2, 2), "WG X, batch yz"),
    ("two", "f32", False, (2, 4, 1), "WG XY, heads"),
    ("beside", "int8", False, (2, 2, 2), "WG XYZ, batch xyz"),
    ("six", "f32", False, (1, 4, 2), "WG XYZ, heads"),
    ("shared", "int8", False, (2, 2, 2), "WG XY, batch xyz"),
    ("shared", "f32", True, (1, 4, 2), "WS 2D position, heads"),
    ("shared", "f32", False, (8, 1, 1), "WS 1D, batch xyz"),
    ("shared", "int8", False, (2, 2, 2), "WS 2D all-reduce, heads"),
    ("shared beside", "f32", False, (2, 2, 2), "WS 2D batch, batch xyz"),
    ("shared beside", "int8", False, (2, 2, 2), "WG XYZ, batch xyz"),
    ("shared beside", "f32", True, (1, 4, 2), "WS 2D all-reduce, heads"),
]


@functools.cache
def parameters(config: ModelConfig, weights: str = "f32") -> Any:
    made = init(jax.random.key(0), config, jnp.float32)
    return quantize(made) if weights == "int8" else made


def run(prefill: Any, step: Any, config: ModelConfig) -> list[np.ndarray]:
    logits, cache = prefill()
    found = [np.asarray(logits)]
    for token in prompts(config, 2, BATCH, seed=1):
        logits, cache = step(cache, token)
        found.append(np.asarray(logits))
    return found


def expected(config: ModelConfig, params: Any) -> list[np.ndarray]:
    tokens = prompts(config, BATCH, LENGTH)
    return run(
        lambda: reference.prefill(params, config, tokens, jnp.asarray(LENGTHS), ROOM),
        lambda cache, token: reference.decode_step(params, config, token, cache),
        config,
    )


def sharded(config: ModelConfig, params: Any, mesh: Any, plan: str) -> list[np.ndarray]:
    specs = layouts.param_specs(config, mesh, params)
    params = jax.device_put(params, layouts.shardings(mesh, specs))
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=plan, dtype=jnp.float32)
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    return run(
        lambda: layouts.prefill(config, mesh, params, cache, tokens, lengths=LENGTHS, plan=plan),
        lambda cache, token: layouts.decode_step(config, mesh, params, cache, token, plan=plan),
        config,
    )


def close(found: list[np.ndarray], wanted: list[np.ndarray]) -> bool:
    pairs = zip(found, wanted, strict=True)
    return all(np.allclose(one, other, rtol=1e-4, atol=2e-5) for one, other in pairs)


@pytest.mark.parametrize(
    ("which", "weights", "unrolled", "shape", "plan"),
    [
        *ARRANGED,
        *(
            pytest.param(
                *one, marks=(pytest.mark.slow, *([] if i % 2 else [pytest.mark.exhaustive]))
            )
            for i, one in enumerate(MORE)
        ),
    ],
)
def test_as_the_reference(
    mesh_of: Any, which: str, weights: str, unrolled: bool, shape: Any, plan: str
) -> None:
    config = CONFIGS[which]
    params = parameters(config, weights)
    given = layouts.unroll(params) if unrolled else params
    found = sharded(config, given, mesh_of(shape, "xyz"), plan)
    assert close(found, expected(config, params))


def test_a_batch_of_three_is_generated(mesh_of: Any) -> None:
    """Fewer tokens than chips, which choose experts for each other."""
    mesh, params = mesh_of((2, 2, 2), "xyz"), parameters(SIX)
    placed = jax.device_put(params, layouts.shardings(mesh, layouts.param_specs(SIX, mesh, params)))
    tokens, lengths = np.asarray(prompts(SIX, 3, 4)), np.array([4, 2, 3], np.int32)
    found, _ = layouts.generate(SIX, mesh, placed, tokens, max_new_tokens=6, lengths=lengths)
    wanted, _ = reference.generate(
        params, SIX, jnp.asarray(tokens), jnp.asarray(lengths), max_new_tokens=6
    )
    np.testing.assert_array_equal(found, wanted)


def with_router(params: Any, **arrays: jax.Array) -> Any:
    return params | {"blocks": params["blocks"] | arrays}


def test_no_token_is_dropped(mesh_of: Any) -> None:
    """All tokens have the same experts; and logits that are all alike choose alike on every chip."""
    params = parameters(SIX)
    bias = params["blocks"]["b_router"].at[:, jnp.array([1, 4, 5])].add(50.0)
    crowded = with_router(params, b_router=bias)
    blocks = params["blocks"]
    alike = with_router(
        params,
        w_router=jnp.zeros_like(blocks["w_router"]),
        b_router=jnp.zeros_like(blocks["b_router"]),
    )
    for given in (crowded, alike):
        found = sharded(SIX, given, mesh_of((2, 2, 2), "xyz"), "WS 2D batch, batch xyz")
        assert close(found, expected(SIX, given))
        assert not close(found, expected(SIX, params))


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        (SIX, Experts(6, 2, "all", True)),
        (SIX, Experts(6, 3, "chosen", True)),
        (SHARED, Experts(4, 2, "all")),
        (SHARED, Experts(4, 2, "all", shared_width=24)),
    ],
    ids=["fewer", "normalized", "none shared", "shared with weight 1"],
)
def test_another_choice_would_be_seen(config: ModelConfig, changed: Experts) -> None:
    other = dataclasses.replace(config, experts=changed)
    params = parameters(config)
    assert not close(expected(other, params), expected(config, params))


@pytest.mark.parametrize("which", CONFIGS)
def test_the_reference_by_loops(which: str) -> None:
    """A token at a time, in float64, of the experts that it has only."""
    config = CONFIGS[which]
    params = parameters(config)
    block = jax.tree.map(lambda x: np.asarray(x[0], np.float64), params["blocks"])
    x = np.random.default_rng(0).normal(size=(2, 3, config.d_model))
    found = reference.feedforward(
        jnp.asarray(x, jnp.float32), jax.tree.map(lambda w: w[0], params["blocks"]), config
    )
    wanted = np.array([[one_token(token, block, config) for token in row] for row in x])
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def one_token(token: np.ndarray, block: Any, config: ModelConfig) -> np.ndarray:
    experts, f = config.experts, config.d_ff
    assert experts is not None
    logits = token @ block["w_router"] + block.get("b_router", 0)
    chosen = sorted(range(experts.count), key=lambda i: -logits[i])[: experts.per_token]
    among = chosen if experts.probabilities == "chosen" else range(experts.count)
    total = sum(math.exp(logits[i]) for i in among)
    result = np.zeros(config.d_model)
    none = np.zeros(experts.count * f)
    for i in chosen:
        own = slice(i * f, (i + 1) * f)
        inner, gate = (
            token @ block[f"w_{name}"][:, own] + block.get(f"b_{name}", none)[own]
            for name in ("in", "gate")
        )
        fed = (gate / (1 + np.exp(-gate)) * inner) @ block["w_out"][own]
        fed = fed + (block["b_out"][i] if "b_out" in block else 0)
        result += math.exp(logits[i]) / total * fed
    if experts.shared_width:
        inner, gate = token @ block["w_shared_in"], token @ block["w_shared_gate"]
        fed = (gate / (1 + np.exp(-gate)) * inner) @ block["w_shared_out"]
        if experts.shared_router:
            fed = fed / (1 + math.exp(-(token @ block["w_shared_router"]).item()))
        result += fed
    return result


def test_a_feedforward_by_itself(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    block = jax.tree.map(lambda x: x[0], parameters(SIX)["blocks"])
    names = ("w_in", "w_gate", "w_out", "b_in", "b_gate", "b_out", "w_router", "b_router")
    weights = {name: block[name] for name in names}
    x = jax.random.normal(jax.random.key(3), (8, 3, SIX.d_model))
    found = layouts.feedforward(x, weights, SIX, "WS 2D batch", mesh=mesh)
    np.testing.assert_allclose(found, reference.feedforward(x, block, SIX), rtol=1e-4, atol=1e-5)
    del weights["b_router"]
    with pytest.raises(ValueError, match=r"weights have no 'b_router'.*experts=Experts\(count=6"):
        layouts.feedforward(x, weights, SIX, "WS 2D batch", mesh=mesh)


def test_each_argument_is_checked() -> None:
    with pytest.raises(ValueError, match=r"per_token=5 is more than count=4.*at most 4"):
        Experts(4, 5)
    with pytest.raises(ValueError, match="Experts: count=0 must be a positive integer"):
        Experts(0, 1)
    with pytest.raises(ValueError, match="Experts: probabilities='some' is none of"):
        Experts(4, 2, probabilities="some")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"shared_router weighs .* give shared_width"):
        Experts(4, 2, shared_router=True)
    with pytest.raises(ValueError, match="Experts: shared_width=-1 must be a positive integer"):
        Experts(4, 2, shared_width=-1)
    with pytest.raises(ValueError, match=r"have no biases.*leave 'in' and 'gate' and 'out' out"):
        dataclasses.replace(SIX, experts=SHARED.experts)
    with pytest.raises(ValueError, match=r"experts=8 must be layouts.Experts\(count="):
        dataclasses.replace(FOUR, experts=8)


def test_params_of_other_experts_are_refused(mesh_of: Any) -> None:
    mesh = mesh_of((1, 1, 1), "xyz")
    other = dataclasses.replace(FOUR, experts=Experts(8, 2))
    cache = layouts.init_cache(other, mesh, 1, 4, dtype=jnp.float32)
    with pytest.raises(ValueError, match=r"needs \(2, 32, 128\).*experts=Experts\(count=8"):
        layouts.prefill(other, mesh, parameters(FOUR), cache, np.zeros((1, 2), np.int32))


def test_advice_about_experts_is_accepted() -> None:
    config = dataclasses.replace(FOUR, d_ff=3, experts=Experts(6, 2), name="odd")
    sizes = {"x": 2, "y": 2, "z": 2}
    why = model_misfit(config, sizes)
    assert "d_ff=3 of 6 experts does not divide over the 8 chips" in why
    assert "pad d_ff of 6 experts with zeros to 4" in why
    assert not model_misfit(dataclasses.replace(config, d_ff=4), sizes)
    experts = Experts(6, 2, shared_width=12)
    config = dataclasses.replace(config, d_ff=4, experts=experts)
    why = model_misfit(config, sizes)
    assert "shared_width=12 does not divide over the 8 chips" in why
    assert "pad shared_width with zeros to 16" in why
    experts = dataclasses.replace(experts, shared_width=16)
    assert not model_misfit(dataclasses.replace(config, experts=experts), sizes)


# Sizes of the models' config.json, and their published numbers of parameters.
MIXTRAL = ModelConfig(
    name="mixtral-8x7b",
    layers=32,
    d_model=4096,
    d_ff=14336,
    heads=32,
    kv_heads=8,
    d_head=128,
    vocab=32000,
    tied_embedding=False,
    experts=Experts(8, 2),
)
QWEN3 = ModelConfig(
    name="qwen3-235b-a22b",
    layers=94,
    d_model=4096,
    d_ff=1536,
    heads=64,
    kv_heads=4,
    d_head=128,
    vocab=151936,
    tied_embedding=False,
    query_key_norm="rmsnorm",
    experts=Experts(128, 8),
)


@pytest.mark.parametrize(
    ("config", "every", "active"), [(MIXTRAL, 46.7e9, 12.9e9), (QWEN3, 235e9, 22e9)], ids=str
)
def test_parameters_as_published(config: ModelConfig, every: float, active: float) -> None:
    assert config.parameters == pytest.approx(every, rel=2e-3)
    assert config.active_parameters == pytest.approx(active, rel=1e-2)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameters_are_those_of_the_arrays(config: ModelConfig) -> None:
    arrays = jax.tree.leaves(parameters(config))
    assert config.stored_parameters == sum(x.size for x in arrays)
