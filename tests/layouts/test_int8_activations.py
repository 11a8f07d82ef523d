"""Int8 activations: against plain numpy, the same on all meshes, and int8 in the lowered program."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
import layouts
from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay import replay
from layouts import tuning
from layouts.cost.layer_items import Einsum, Transfer
from layouts.cost.layer_work import layer_work
from layouts.cost.step_cost import Cost
from layouts.cost.step_cost import cost as cost_of
from layouts.cost.workload import load
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GEGLU, TINY_GROUPED, TINY_PADDED
from layouts.models.params import init, quantize
from layouts.partitionings.feedforward_layout import FeedForwardLayout
from layouts.partitionings.weight_gathered import WeightGathered
from tests.products import sampled

from .arrangements import BY_POSITION, FEEDFORWARDS
from .models import prompts

LAYOUTS = (*FEEDFORWARDS, BY_POSITION)
RELU = dataclasses.replace(TINY_GEGLU, activation="relu", biases=False, int8_activations=True)
BLOCKS = tuple(dataclasses.replace(c, int8_activations=True) for c in (TINY_PADDED, TINY_GROUPED))


def rounded(
    x: np.ndarray, layout: FeedForwardLayout, shape: tuple[int, ...], *, few: bool
) -> np.ndarray:
    """Rows of x rounded to 127 steps of the largest magnitude: of a row, or where rows are few, of each
    shard of one whose products are summed with those of others."""
    gathered = layout.axes if isinstance(layout, WeightGathered) else ()
    parts = x.reshape(x.shape[0], *shape[1:], -1).astype(np.float32)
    over = tuple(dim for dim, axis in ((1, "y"), (2, "z")) if axis in gathered or not few)
    scale = np.abs(parts).max(axis=(*over, 3), keepdims=True) / np.float32(127)
    scale = np.where(scale == 0, np.float32(1), scale)
    return (np.round(parts / scale) * scale).reshape(x.shape)


def whole_numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "few"),
    [((2, 2, 2), True), ((2, 2, 2), False), ((4, 2, 1), False), ((1, 1, 8), True)],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_feedforward_is_that_of_numpy(
    mesh_of: Any, monkeypatch: pytest.MonkeyPatch, layout: Any, shape: Any, few: bool
) -> None:
    """With sums that float32 holds exactly, so that each rounding falls the same way everywhere."""
    monkeypatch.setattr(tuning, "OWN_SCALE_ROWS", 1024 if few else 0)
    config, step = RELU, np.float32(2**-9)
    x = whole_numbers(0, 8, 8, config.d_model)
    # Whichever shard of a row a chip has, its scale is 1.
    x[..., :: config.d_model // 8] = 127
    values = {
        "w_in": whole_numbers(1, config.d_model, config.d_ff),
        "w_gate": whole_numbers(2, config.d_model, config.d_ff),
        "w_out": whole_numbers(3, config.d_ff, config.d_model),
    }
    weights = {
        key: ce.Quantized(
            jnp.asarray(w, jnp.int8), jnp.full((1, w.shape[1]), step), jnp.dtype(jnp.float32)
        )
        for key, w in values.items()
    }
    mesh = mesh_of(shape, "xyz")
    y = jax.jit(lambda x, w: layouts.feedforward(x, w, config, layout, mesh=mesh))(x, weights)
    flat = x.reshape(-1, config.d_model)
    gate = np.maximum(flat @ (values["w_gate"] * step), 0)
    hidden = rounded(gate * (flat @ (values["w_in"] * step)), layout, shape, few=few)
    wanted = (hidden.astype(np.float64) @ values["w_out"] * step).reshape(x.shape)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def logits(config: ModelConfig, mesh: Any, params: Any, plan: str) -> np.ndarray:
    """After prompts of 8 sequences, and after one more token."""
    params = jax.device_put(
        params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params))
    )
    cache = layouts.init_cache(config, mesh, 8, 6, plan=plan, dtype=jnp.float32)
    first, cache = layouts.prefill(config, mesh, params, cache, prompts(config, 8, 4), plan=plan)
    token = prompts(config, 1, 8, seed=1)[0]
    second, _ = layouts.decode_step(config, mesh, params, cache, token, plan=plan)
    return np.stack([first, second])


PLANS = (
    *(
        "WS 2D, heads",
        "WS 2D batch, batch z",
        "WS 2D batch, batch xyz",
        "WS 2D all-reduce, batch yz",
    ),
    *("WS 1D, heads", "WG X, batch z", "WG XY, heads", "WG XYZ, batch xyz"),
)


@pytest.mark.slow
@pytest.mark.parametrize(("plan", "scales"), sampled(PLANS, ("own scales", "shared scales")))
def test_decoder_errs_as_on_one_device(
    mesh_of: Any, monkeypatch: pytest.MonkeyPatch, plan: str, scales: str
) -> None:
    """No more, and not exactly as without rounding."""
    few = scales == "own scales"
    config = BLOCKS[0 if few else 1]
    monkeypatch.setattr(tuning, "OWN_SCALE_ROWS", 1024 if few else 0)
    params = quantize(init(jax.random.key(0), config, jnp.float32))
    plain = dataclasses.replace(config, int8_activations=False)
    truth = logits(plain, mesh_of((1, 1, 1), "xyz"), params, "WS 1D, heads")

    def error(shape: tuple[int, ...]) -> float:
        found = logits(config, mesh_of(shape, "xyz"), params, plan)
        return float(np.sqrt(np.mean((found - truth)[..., : config.vocab] ** 2)))

    one = error((1, 1, 1))
    assert 0 < one < 0.03 * np.std(truth[..., : config.vocab])
    assert 0 < error((2, 2, 2)) < 1.3 * one


@pytest.mark.slow
def test_generates_under_the_default_plans(mesh_of: Any) -> None:
    """Which reckon with int8 weights."""
    config, mesh = BLOCKS[1], mesh_of((2, 2, 2), "xyz")
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32, weights="int8")
    given = prompts(config, 8, 4)
    tokens, _ = layouts.generate(config, mesh, params, given, max_new_tokens=3)
    scores = layouts.score(config, mesh, params, jnp.concatenate([given, tokens], axis=1))
    assert tokens.shape == (8, 3)
    assert np.isfinite(np.asarray(scores)[:, 1:]).all()


@pytest.mark.parametrize(
    "layout",
    [LAYOUTS[0], *(pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS[1:])],
    ids=str,
)
def test_a_token_that_is_not_finite_stays_so(mesh_of: Any, layout: Any) -> None:
    """And no other becomes it."""
    weights = quantize(init(jax.random.key(0), RELU, jnp.float32))["blocks"]
    one = {key: jax.tree.map(lambda w: w[0], weights[key]) for key in ("w_in", "w_gate", "w_out")}
    x = jax.random.normal(jax.random.key(1), (8, 8, RELU.d_model)).at[3, 5, 7].set(jnp.nan)
    mesh = mesh_of((2, 2, 2), "xyz")
    y = np.asarray(layouts.feedforward(x, one, RELU, layout, mesh=mesh))
    assert not np.isfinite(y[3, 5]).any()
    assert np.isfinite(y).sum() == y.size - RELU.d_model


def lowered(mesh: Any, plan: str, weights: str = "int8") -> str:
    config = dataclasses.replace(TINY_GROUPED, int8_activations=True)
    how: dict[str, Any] = {"plan": plan, "weights": weights, "chip": "v5e"}
    return layouts.lower_prefill(config, mesh, batch=8, length=16, **how).as_text()


@pytest.mark.parametrize("plan", PLANS)
def test_every_matrix_multiplies_int8(mesh_of: Any, plan: str) -> None:
    """Those of a layer: of q, kv, o, in, gate and out; and no other dot has two of them."""
    dots = re.findall(
        r"stablehlo.dot_general .*?: \(tensor<(.*?)>, tensor<(.*?)>\)",
        lowered(mesh_of((2, 2, 2), "xyz"), plan),
    )
    both = [pair for pair in dots if all(x.endswith("xi8") for x in pair)]
    assert len(both) >= 6
    assert not [pair for pair in dots if pair not in both and pair[1].endswith("xi8")]


@pytest.mark.parametrize("plan", ["WS 2D batch, batch xyz", "WS 1D, heads", "WG X, heads"])
def test_gathers_send_int8(mesh_of: Any, plan: str) -> None:
    text = lowered(mesh_of((2, 2, 2), "xyz"), plan)
    gathers = re.findall(r"all_gather.*?\}> : \(tensor<(.*?)>\)", text, re.DOTALL)
    sent = "".join(gathers) + "".join(re.findall(r"collective_permute.*?tensor<(.*?)>", text))
    assert "xi8" in sent


REFUSED = {
    "int8_activations of a mixture of experts": lambda: dataclasses.replace(
        layouts.model("mixtral-8x22b"), int8_activations=True
    ),
    "int8_activations=1 must be": lambda: dataclasses.replace(TINY_GROUPED, int8_activations=1),
    'need int8 matrices; ask for weights="int8"': lambda: layouts.plan(
        BLOCKS[0], chips=4, phase="decode", batch=8, context=64
    ),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        REFUSED[words]()


def test_refuses_plain_matrices(mesh_of: Any) -> None:
    with pytest.raises(ValueError, match="need int8 matrices, but 'w_q' is not Quantized"):
        lowered(mesh_of((2, 2, 2), "xyz"), "WS 1D, heads", weights="bf16")
    weights = init(jax.random.key(0), RELU, jnp.float32)["blocks"]
    one = {key: weights[key][0] for key in ("w_in", "w_gate", "w_out")}
    x = jnp.ones((8, 8, RELU.d_model))
    with pytest.raises(ValueError, match="but 'w_in' is not Quantized"):
        layouts.feedforward(x, one, RELU, LAYOUTS[0], mesh=mesh_of((2, 2, 2), "xyz"))


@pytest.mark.parametrize(("chip", "most"), [("v5e", 0.7), ("v5p", 0.7), ("v6e", 0.9)])
def test_prompts_cost_less(chip: str, most: float) -> None:
    """Nearly half the seconds of matmuls where the matrix units multiply int8 twice as fast (of v6e the
    compiler's estimates say less), and half the bytes of gathered activations."""
    model = dataclasses.replace(layouts.model("llama-3.1-70b"), padded_heads=None)
    asked = load("prefill", batch=8, length=2048, weights="int8")

    def cost(*, rounds: bool, plan: str) -> Cost:
        config = dataclasses.replace(model, int8_activations=rounds)
        return cost_of(config, plan, (4, 2, 2), asked, chip)

    plain, rounding = (cost(rounds=rounds, plan="WG X, heads") for rounds in (False, True))
    assert 0.5 < rounding.matmul_seconds / plain.matmul_seconds < most
    assert rounding.rest_seconds > plain.rest_seconds
    assert plain.flop_seconds / 2 == pytest.approx(rounding.flop_seconds, rel=0.01)
    assert rounding.step_seconds < plain.step_seconds
    plain, rounding = (cost(rounds=r, plan="WS 2D batch, batch xyz") for r in (False, True))
    assert rounding.ici_bytes["y"] < 0.8 * plain.ici_bytes["y"]
    assert "int8 activations" in str(
        layouts.plan(
            rounding.config, mesh_shape=(4, 2, 2), phase="prefill", length=64, weights="int8"
        )
    )


@pytest.mark.tpu
def test_compiled_matrices_multiply_int8() -> None:
    """All matrices of a layer, in fusions whose dot the compiler gives two int8 operands: the seconds of
    the dots by the replay, attention's included, are far fewer."""
    mesh = target("v5e:2x2").mesh((2, 2, 1), ("x", "y", "z"))
    model = dataclasses.replace(
        layouts.model("llama-3.1-8b"), layers=1, d_model=2048, d_ff=8192, heads=16, vocab=4096
    )

    def replayed(*, rounds: bool) -> tuple[int, float]:
        config = dataclasses.replace(model, int8_activations=rounds)
        how: dict[str, Any] = {"plan": "WG X, heads", "weights": "int8"}
        text = layouts.lower_prefill(config, mesh, batch=4, length=512, **how).compile().as_text()
        module = hlo.parse(text or "")
        both = [
            dot
            for computation in module.computations.values()
            for instruction in computation
            for dot in work.multiplied(module, computation, instruction)
            if instruction.opcode in ("dot", "convolution") and dot.lhs.bits == dot.rhs.bits == 8
        ]
        return len(both), replay(text or "", mesh).dot_seconds

    (none, plain), (count, rounded_dots) = (replayed(rounds=rounds) for rounds in (False, True))
    assert none == 0
    assert count >= 6
    assert rounded_dots < 0.7 * plain


def test_few_rows_are_priced_as_they_run() -> None:
    """With scales of each chip's own, sums come after the einsums, and scales need no all-reduce over
    axes that are summed over."""
    config = dataclasses.replace(layouts.model("llama-3.1-70b"), int8_activations=True)
    sizes = {"x": 4, "y": 4, "z": 1}

    def items(batch: int, length: int) -> tuple[set[str], list[bool]]:
        asked = load("prefill", batch=batch, length=length, weights="int8")
        made = layer_work(config, "WS 2D batch, batch z", sizes, asked)
        names = {item.name for item in made if isinstance(item, Transfer)}
        return names, [item.scatter is not None for item in made if isinstance(item, Einsum)]

    names, scattered = items(batch=16, length=16)
    assert not any(scattered)
    assert {"sums over x", "sums over yz"} <= names
    assert "scales of rows" not in names
    names, scattered = items(batch=16, length=1024)
    assert all(scattered)
    assert "scales of rows" in names
