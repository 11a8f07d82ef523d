"""Configs: the paper's models by their counts, padding, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from layouts.models.config import ModelConfig, Rotary
from layouts.models.named_models import (
    MT_NLG_530B,
    PALM_8B,
    PALM_62B,
    PALM_540B,
    TINY_GROUPED,
    TINY_MULTIHEAD,
    TINY_MULTIQUERY,
    TINY_PADDED,
    TINY_RELU,
    model,
)


@pytest.mark.parametrize(
    ("config", "parameters", "precision"),
    # Table D.1 of arXiv 2211.05102, and the digits that it gives.
    [
        (PALM_8B, 8.63e9, 0.005e9),
        (PALM_62B, 62.50e9, 0.005e9),
        (PALM_540B, 540.35e9, 0.01e9),
        (MT_NLG_530B, 530e9, 0.5e9),
    ],
)
def test_parameters_are_the_papers(
    config: ModelConfig, parameters: float, precision: float
) -> None:
    assert config.parameters == pytest.approx(parameters, abs=precision)


def test_padding_palm_540b_adds_18_billion() -> None:
    # Section 4 of arXiv 2211.05102: padding 48 heads to 64 costs 18B parameters.
    added = PALM_540B.stored_parameters - PALM_540B.parameters
    assert added == 16 * 2 * 18432 * 256 * 118
    assert added == pytest.approx(18e9, abs=0.5e9)


def test_multihead_pads_key_value_heads_with_the_queries() -> None:
    assert (TINY_RELU.stored_heads, TINY_RELU.stored_kv_heads) == (8, 8)
    assert TINY_RELU.real_heads == (True,) * 4 + (False,) * 4


def test_multiquery_pads_query_heads_only() -> None:
    assert (TINY_PADDED.stored_heads, TINY_PADDED.stored_kv_heads) == (8, 1)
    assert TINY_PADDED.real_heads == (True,) * 6 + (False,) * 2


def test_grouped_queries_are_padded_within_their_group() -> None:
    config = dataclasses.replace(TINY_GROUPED, heads=6, kv_heads=2, padded_heads=8)
    assert (config.stored_kv_heads, config.queries_per_kv) == (2, 4)
    assert config.real_heads == (True, True, True, False) * 2


def test_nothing_is_stored_twice_without_padding() -> None:
    for config in (PALM_8B, MT_NLG_530B, TINY_MULTIHEAD, TINY_GROUPED):
        assert config.stored_parameters == config.parameters
        assert all(config.real_heads)


def test_a_config_is_a_static_argument() -> None:
    again = dataclasses.replace(PALM_540B)
    assert again == PALM_540B
    assert hash(again) == hash(PALM_540B)
    with pytest.raises(dataclasses.FrozenInstanceError):
        again.layers = 1  # type: ignore[misc]


def test_rotary_dimensions() -> None:
    assert TINY_MULTIHEAD.rotary_dims == 4
    assert TINY_MULTIQUERY.rotary_dims == 8
    assert TINY_RELU.rotary_dims == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, r"layers=0 must be a positive integer"),
        ({"d_model": 32.0}, r"d_model=32\.0 must be a positive integer"),
        ({"vocab": True}, r"vocab=True must be a positive integer"),
        ({"d_ff": "64"}, r"d_ff='64' must be a positive integer"),
        ({"kv_heads": 3}, r"heads=8 must be a multiple of kv_heads=3"),
        ({"padded_heads": 6}, r"padded_heads=6 is less than heads=8"),
        ({"kv_heads": 4, "padded_heads": 10}, r"padded_heads=10 must be a multiple of kv_heads=4"),
        ({"block": "sideways"}, r"block='sideways' must be one of parallel, serial"),
        ({"activation": "swiglu"}, r"activation='swiglu' must be one of silu, gelu, gelu_tanh"),
        ({"norm": "batchnorm"}, r"norm='batchnorm' must be one of rmsnorm, layernorm"),
        ({"norm_epsilon": 0.0}, r"norm_epsilon=0\.0 must be positive"),
        ({"d_head": 7}, r"d_head=7 is 7 dimensions; make that an even number"),
        ({"rotary": Rotary(fraction=0.01)}, r"d_head=8 is 0 dimensions"),
    ],
)
def test_refuses_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="tiny-multiquery: .*" + message):
        dataclasses.replace(TINY_MULTIQUERY, **change)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": 1.0}, r"base=1\.0 must be greater than 1"),
        ({"fraction": 0.0}, r"fraction=0\.0 must be in \(0, 1\]; use rotary=None"),
        ({"fraction": 1.5}, r"fraction=1\.5"),
    ],
)
def test_refuses_a_rotary_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotary(**settings)


def test_odd_heads_need_no_rotary() -> None:
    assert dataclasses.replace(TINY_MULTIQUERY, d_head=7, rotary=None).d_head == 7


def test_models_have_names() -> None:
    assert model("palm-540b") is PALM_540B
    with pytest.raises(ValueError, match=r"no model named 'palm'; there are palm-8b, palm-62b"):
        model("palm")
