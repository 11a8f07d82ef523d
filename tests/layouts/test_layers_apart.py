"""Layers whose parameters are arrays of their own, in a loop into which each one's are copied; and where
parameters are so by default."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import layouts
from collective_einsum import ruler
from collective_einsum.ruler.replay.simulation import replay
from layouts.decoding import compiled_step
from layouts.decoding.compiled_step import Program, load_of
from layouts.decoding.layer_arrays import are_alike
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED
from layouts.models.open_models import MIXTRAL_8X22B
from layouts.models.params import params_shapes
from layouts.models.stacked_params import unroll
from tests.products import mostly_exhaustive

from .models import prompts

BATCH, LENGTH, ROOM = 8, 4, 12
PLAN = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
AXES = ("x", "y", "z")
# Two kinds of attention, a layer that is left of them, and caches of two lengths.
WINDOWED = dataclasses.replace(
    TINY_GROUPED,
    layers=5,
    attention_kinds=(layouts.AttentionKind(window=3), layouts.AttentionKind()),
)
EXPERTS = dataclasses.replace(TINY_GROUPED, layers=3, experts=layouts.Experts(count=4, per_token=2))
CASES = {
    "int8": (TINY_PADDED, "int8"),
    "odd": (dataclasses.replace(TINY_GROUPED, layers=3), "plain"),
    "windows": (WINDOWED, "plain"),
    "experts": (EXPERTS, "int8"),
}


def steps(config: ModelConfig, mesh: Any, params: Any) -> list[np.ndarray]:
    """Logits of a prefill, of a chunk after it and of a step of decoding, and what they stored; new
    tokens after a prefix, and the scores of prompts."""
    cache = layouts.init_cache(config, mesh, BATCH, ROOM, plan=PLAN, dtype=jnp.float32)
    found = []
    for chunk in (prompts(config, BATCH, LENGTH), prompts(config, BATCH, 2, seed=1)):
        logits, cache = layouts.prefill(config, mesh, params, cache, chunk, plan=PLAN)
        found.append(logits)
    token = prompts(config, 1, BATCH, seed=2)[0]
    logits, cache = layouts.decode_step(config, mesh, params, cache, token, plan=PLAN)
    found += [logits, *jax.tree.leaves(cache)]
    start = layouts.init_cache(config, mesh, 1, LENGTH, dtype=jnp.float32)
    _, start = layouts.prefill(config, mesh, params, start, prompts(config, 1, LENGTH))
    after = prompts(config, BATCH, LENGTH, seed=3)
    tokens, counts = layouts.generate(
        config,
        mesh,
        params,
        after,
        max_new_tokens=3,
        prefix=layouts.shared_prefix(start),
        plan=PLAN,
    )
    found += [tokens, counts, layouts.score(config, mesh, params, after, plan=PLAN, chunk=2)]
    return [np.asarray(x) for x in found]


@pytest.mark.slow
@pytest.mark.parametrize("case", mostly_exhaustive(list(CASES), ["windows", "experts"]))
def test_copies_of_layers_make_the_same_numbers(
    mesh_of: Any, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    config, weights = CASES[case]
    mesh = mesh_of((2, 2, 2), "xyz")
    stacked = layouts.init(
        config, mesh, jax.random.key(0), jnp.float32, weights=weights, unrolled=False
    )
    monkeypatch.setattr(compiled_step, "LONGEST_COPY", float("inf"))
    for one, other in zip(
        steps(config, mesh, unroll(stacked)), steps(config, mesh, stacked), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("length", "looped"), [(16, False), (256, True)])
def test_long_prompts_are_read_in_a_loop(mesh_of: Any, length: int, looped: bool) -> None:
    """A loop multiplies as often in the text of a step of any number of layers."""
    mesh = mesh_of((2, 2, 2), "xyz")

    def dots(layers: int) -> int:
        config = dataclasses.replace(TINY_GROUPED, layers=layers)
        lowered = layouts.lower_prefill(
            config, mesh, batch=64, length=length, plan=PLAN, unrolled=True, chip="v4"
        )
        return lowered.as_text().count("dot_general")

    assert (dots(5) == dots(3)) == looped


def test_a_step_copies_where_copies_take_a_quarter_of_its_matmuls() -> None:
    """On v4, 275e12 flops, and 87% of 1.2e12 bytes a second: two bytes a weight are read and written in
    a quarter of the time in which 2110 tokens are multiplied."""
    mesh = AbstractMesh((2, 2, 2), AXES)

    def copies(tokens: int, *, apart: bool = True, int8: bool = False) -> bool:
        params = params_shapes(TINY_PADDED, unrolled=apart, int8=int8)
        load = load_of(params, tokens, 1, 16, jnp.bfloat16)
        return Program.of(
            TINY_PADDED, mesh, PLAN, "auto", params, chip="v4", load=load
        ).copies_layers

    assert [copies(tokens) for tokens in (512, 1024, 4096)] == [False, False, True]
    assert [copies(tokens, int8=True) for tokens in (512, 2048)] == [False, True]
    assert not copies(4096, apart=False)


def test_layers_of_several_kinds_are_not_alike() -> None:
    plain, int8 = (
        params_shapes(TINY_PADDED, jnp.bfloat16, unrolled=True, int8=int8)["blocks"]
        for int8 in (False, True)
    )
    other = params_shapes(TINY_PADDED, jnp.float32, unrolled=True)["blocks"]
    assert are_alike(plain)
    assert are_alike(int8)
    assert not are_alike([plain[0], int8[0]])
    assert not are_alike([plain[0], other[0]])


def test_parameters_are_stacked_on_other_devices_by_default(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    params = layouts.init(TINY_PADDED, mesh, jax.random.key(0), jnp.float32)
    assert isinstance(params["blocks"], dict)
    with pytest.raises(ValueError, match="unrolled='yes' must be True or False"):
        layouts.init(TINY_PADDED, mesh, jax.random.key(0), unrolled="yes")  # pyright: ignore[reportArgumentType]


def test_steps_are_lowered_with_the_parameters_of_the_chip(mesh_of: Any) -> None:
    """On TPUs those are unrolled: the more layers, the more arguments."""
    mesh = mesh_of((2, 2, 2), "xyz")

    def arguments(layers: int, unrolled: bool | None = None, chip: str | None = None) -> int:
        config = dataclasses.replace(TINY_PADDED, layers=layers)
        lowered = layouts.lower_decode_step(
            config, mesh, batch=8, context=16, plan=PLAN, unrolled=unrolled, chip=chip
        )
        return len(jax.tree.leaves(lowered.in_avals))

    assert arguments(4) == arguments(2)
    assert arguments(4, chip="v5e") == arguments(4, True) > arguments(2, chip="v5e")
    assert arguments(4, False, chip="v5e") == arguments(2)


@pytest.mark.tpu
@pytest.mark.parametrize("slice_", ["v5e:2x2", "v6e:2x2"])
def test_a_replayed_step_reads_all_its_weights_from_hbm(slice_: str) -> None:
    """Those that come ahead, and those too large for on-chip memory, which dots read."""
    config = dataclasses.replace(MIXTRAL_8X22B, layers=1, vocab=4096)
    mesh = ruler.mesh(slice_, dict(zip(AXES, (1, 2, 2), strict=True)))
    lowered = layouts.lower_decode_step(
        config, mesh, batch=32, context=64, weights="int8", plan="WS 2D all-reduce, heads"
    )
    weights = jax.tree.leaves(params_shapes(config, int8=True)["blocks"])
    held = sum(x.size * x.dtype.itemsize for x in weights) / 4
    assert replay(lowered.compile().as_text() or "", mesh).hbm_bytes > held


@pytest.mark.tpu
def test_a_described_slice_has_unrolled_parameters() -> None:
    mesh = ruler.mesh("v5e:2x2", dict(zip(AXES, (2, 2, 1), strict=True)))
    lowered = layouts.lower_decode_step(TINY_GROUPED, mesh, batch=8, context=16)
    expected = params_shapes(TINY_GROUPED, unrolled=True)
    assert jax.tree.structure(lowered.args_info[0][0]) == jax.tree.structure(expected)
