"""Int8 activations: against plain numpy, the same on all meshes, and int8 in the lowered program."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
import layouts
from layouts import tuning
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GEGLU, TINY_GROUPED, TINY_PADDED
from layouts.models.params import init, quantize
from layouts.partitionings.feedforward_layout import FeedForwardLayout
from layouts.partitionings.weight_gathered import WeightGathered

from .arrangements import BY_POSITION, FEEDFORWARDS, MESHES
from .models import name, prompts

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


@pytest.mark.parametrize("few", [True, False], ids=["own scales", "shared scales"])
@pytest.mark.parametrize("shape", MESHES, ids=str)
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
@pytest.mark.parametrize("few", [True, False], ids=["own scales", "shared scales"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("config", BLOCKS, ids=name)
def test_decoder_errs_as_on_one_device(
    mesh_of: Any, monkeypatch: pytest.MonkeyPatch, config: Any, plan: str, few: bool
) -> None:
    """No more, and not exactly as without rounding."""
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
