"""Scores of texts against the reference: every layout, chunk and padding, and what is refused."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layouts
from collective_einsum.advise.jaxprs import every_jaxpr, type_of
from layouts import reference, tuning
from layouts.decoding.score import scorer
from layouts.models.config import AttentionKind, ModelConfig
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIHEAD, TINY_PADDED
from layouts.models.params import init, quantize

from .arrangements import ATTENTIONS, BY_POSITION, FEEDFORWARDS
from .models import name, prompts

BATCH, LENGTH = 3, 12
LENGTHS = np.array([12, 1, 7], np.int32)
# 64 tokens, in tables of 67 rows that no axis of a mesh divides, and of 72.
UNEVEN = dataclasses.replace(TINY_GROUPED, name="uneven", vocab=63, padded_vocab=67)
CAPPED = dataclasses.replace(
    TINY_MULTIHEAD,
    name="capped",
    vocab=61,
    padded_vocab=72,
    logit_cap=2.0,
    logit_scale=0.5,
    biases=("unembedding", "q"),
    tied_embedding=False,
    attention_kinds=(AttentionKind(window=3), AttentionKind()),
)
PLANS = [*itertools.product(FEEDFORWARDS, ATTENTIONS), (BY_POSITION, layouts.HeadSharded())]
MESHES = ((2, 2, 2), (1, 4, 2), (8, 1, 1))


@functools.cache
def parameters(config: ModelConfig, scale: float = 3.0) -> Any:
    """Whose logits differ by several units."""
    params = init(jax.random.key(0), config, jnp.float32)
    table = "embedding" if config.tied_embedding else "unembedding"
    return params | {table: params[table] * scale}


@functools.cache
def expected(config: ModelConfig, batch: int = BATCH) -> np.ndarray:
    tokens = prompts(config, batch, LENGTH)
    lengths = jnp.resize(jnp.asarray(LENGTHS), (batch,))
    return np.asarray(reference.score(parameters(config), config, tokens, lengths))


def check(found: Any, wanted: np.ndarray) -> None:
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


def score(config: ModelConfig, mesh: Any, **given: Any) -> Any:
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    given = {"lengths": LENGTHS} | given
    return layouts.score(config, mesh, parameters(config), tokens, **given)


def test_the_reference_sums_to_one() -> None:
    """The probabilities of all tokens that can come next."""
    config, tokens = UNEVEN, np.asarray(prompts(UNEVEN, 1, 4))
    every = np.repeat(tokens, config.vocab, axis=0)
    every[:, 3] = np.arange(config.vocab)
    lengths = jnp.full(config.vocab, 4)
    found = reference.score(parameters(config), config, jnp.asarray(every), lengths)
    assert float(jnp.exp(found[:, 3]).sum()) == pytest.approx(1, abs=1e-5)
    assert float(jnp.exp(found[:, 3]).max()) > 3 / config.vocab
    assert np.unique(np.asarray(found[:, 1])).size == 1


@pytest.mark.parametrize("shape", MESHES, ids=str)
@pytest.mark.parametrize("config", [TINY_PADDED, UNEVEN, CAPPED], ids=name)
def test_default_plans(mesh_of: Any, shape: Any, config: Any) -> None:
    chunk = {2: 4, 1: 512, 8: 11}[shape[0]]
    if shape[1] == 4 and config.stored_kv_heads == 2:
        chunk = 1
    check(score(config, mesh_of(shape, "xyz"), chunk=chunk), expected(config))


@pytest.mark.slow
@pytest.mark.parametrize("place", range(0, len(PLANS), 4))
def test_named_plans(mesh_of: Any, place: int) -> None:
    """Pairs of layouts in turn, on meshes and in chunks in turn."""
    plan = layouts.Partitioning(*PLANS[place])
    mesh = mesh_of(MESHES[place % 3], "xyz")
    config = (TINY_PADDED, UNEVEN, CAPPED)[place // 4 % 3]
    check(score(config, mesh, plan=plan, chunk=(4, 12)[place // 4 % 2]), expected(config))


@pytest.mark.parametrize(
    "plan", ["WS 2D, heads", "WS 2D position, heads", "WS 2D batch, batch xyz"]
)
def test_slices_of_positions(mesh_of: Any, monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    """Two positions at a time, which do not divide what a chip has: it never has more logits."""
    config, mesh = UNEVEN, mesh_of((2, 2, 2), "xyz")
    given: Any = {"lengths": LENGTHS, "plan": plan}

    def most_rows() -> int:
        scorer.cache_clear()
        shapes = shapes_of(config, mesh, **given)
        return max(math.prod(s[:-1]) for s in shapes if s and s[-1] == config.stored_vocab)

    whole = most_rows()
    rows = {"WS 2D, heads": 3, "WS 2D position, heads": 12, "WS 2D batch, batch xyz": 8}[plan]
    monkeypatch.setattr(tuning, "LOGIT_BYTES", 2 * rows * 4 * config.stored_vocab)
    assert most_rows() == 2 * rows < whole
    scorer.cache_clear()
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    check(layouts.score(config, mesh, parameters(config), tokens, **given), expected(config))
    scorer.cache_clear()


def shapes_of(config: ModelConfig, mesh: Any, **given: Any) -> set[tuple[int, ...]]:
    """The shapes of all arrays that a chip makes while it scores."""
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    made = jax.make_jaxpr(lambda p: layouts.score(config, mesh, p, tokens, **given))
    return {
        tuple(type_of(variable).shape)
        for outer in every_jaxpr(made(parameters(config)).jaxpr)
        for mapped in outer.eqns
        if mapped.primitive.name == "shard_map"
        for jaxpr in every_jaxpr(mapped.params["jaxpr"])
        for equation in jaxpr.eqns
        for variable in equation.outvars
    }


def test_no_logits_are_gathered(mesh_of: Any) -> None:
    """A chip has its eighth of the vocabulary; 104 is no other size of the model."""
    config = dataclasses.replace(TINY_GROUPED, vocab=104, name="wide")
    last = {shape[-1] for shape in shapes_of(config, mesh_of((2, 2, 2), "xyz")) if shape}
    assert 104 // 8 in last
    assert 104 not in last


def test_masks_of_either_side(mesh_of: Any) -> None:
    """A score stands at the place of its token."""
    config, mesh = UNEVEN, mesh_of((2, 2, 2), "xyz")
    tokens, wanted = np.asarray(prompts(config, BATCH, LENGTH)), expected(config)
    shifts = np.array([0, 5, 2])
    moved = np.stack([np.roll(row, n) for row, n in zip(tokens, shifts, strict=True)])
    mask = np.stack([np.roll(np.arange(12) < n, s) for n, s in zip(LENGTHS, shifts, strict=True)])
    found = layouts.score(config, mesh, parameters(config), moved, attention_mask=mask, chunk=5)
    back = np.stack([np.roll(row, -n) for row, n in zip(np.asarray(found), shifts, strict=True)])
    check(back, wanted)
    unmasked = np.asarray(layouts.score(config, mesh, parameters(config), moved))
    assert np.abs(unmasked[2] - np.asarray(found)[2]).max() > 0.1


def test_other_weights_and_caches(mesh_of: Any) -> None:
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    tokens, wanted = np.asarray(prompts(config, BATCH, LENGTH)), expected(config)
    params = layouts.unroll(parameters(config))
    check(layouts.score(config, mesh, params, tokens, lengths=LENGTHS, chunk=4), wanted)
    given: Any = {"lengths": LENGTHS, "chunk": 4}
    options: Any
    for other, options in (
        (quantize(parameters(config)), {}),
        (parameters(config), {"int8_cache": True}),
        (jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters(config)), {}),
    ):
        found = np.asarray(layouts.score(config, mesh, other, tokens, **given, **options))
        assert found.dtype == np.float32
        assert 0 < np.abs(found - wanted).max() < 0.3
    explicit = mesh_of((2, 2, 2), "xyz", explicit=True)
    placed = layouts.shardings(explicit, layouts.param_specs(config, explicit))
    params = jax.device_put(parameters(config), placed)
    check(layouts.score(config, explicit, params, tokens, **given), wanted)


def test_a_long_text_in_chunks_is_that_in_one(mesh_of: Any) -> None:
    """And no chunk is compiled again."""
    config, mesh = TINY_GROUPED, mesh_of((1, 4, 2), "xyz")
    tokens = np.asarray(prompts(config, 1, 70))
    params = parameters(config)
    whole = layouts.score(config, mesh, params, tokens)
    check(layouts.score(config, mesh, params, tokens, chunk=9), np.asarray(whole))
    assert np.asarray(whole)[0, 0] == 0
    assert np.exp(-np.asarray(whole)[0, 1:].mean()) > 1


def test_one_token_has_nothing_to_score(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    found = layouts.score(config, mesh, parameters(config), [[3], [5]])
    assert np.asarray(found).tolist() == [[0.0], [0.0]]


def test_refuses_in_words(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    for options, message in (
        ({"chunk": 0}, "chunk=0 must be a positive integer"),
        ({"lengths": [1, 2]}, r"lengths of shape \(2,\) must be \(3,\)"),
        ({"lengths": [13, 2, 3]}, "lengths must be between 0 and 12"),
        ({"plan": "WS 2D"}, "must name a feedforward layout and an attention layout"),
        ({"int8_cache": 1}, "int8_cache=1 must be True or False"),
        ({"attention_mask": np.ones((3, 12))}, "lengths and attention_mask both say"),
    ):
        with pytest.raises(ValueError, match=message):
            score(config, mesh, **options)
    with pytest.raises(ValueError, match="token 64 is not in the vocabulary"):
        layouts.score(config, mesh, parameters(config), [[1, 64]])
