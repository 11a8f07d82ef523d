"""Configs: the paper's models by their counts, padding, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from layouts.models.alibi import alibi_slopes
from layouts.models.config import GateClamp, ModelConfig
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
from layouts.models.rotary import (
    DividedScaling,
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    Rotary,
    YarnScaling,
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
    padded = dataclasses.replace(PALM_540B, padded_heads=64)
    added = padded.stored_parameters - PALM_540B.stored_parameters
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
        ({"block": "sideways"}, r"block='sideways' is none of \('parallel', 'serial'\)"),
        ({"activation": "swiglu"}, r"activation='swiglu' is none of \('silu', 'gelu'"),
        ({"norm": "batchnorm"}, r"norm='batchnorm' is none of \('rmsnorm', 'layernorm'"),
        ({"norm_placement": "afer", "block": "serial"}, r"'afer' is none of .*mean 'after'\?"),
        ({"norm_placement": "both"}, r"a parallel block has one norm.*use block=\"serial\""),
        ({"query_key_norm": "l2"}, r"query_key_norm='l2' is none of"),
        ({"biases": ("w_q",)}, r"biases='w_q' is none of \('q', 'kv'"),
        ({"biases": ("gate",), "gated": False}, r'biases has "gate", but gated=False'),
        ({"biases": ("norm",)}, r"""biases has "norm", but norm='rmsnorm' has none"""),
        ({"biases": 1}, r"biases=1 must be True or False"),
        ({"attention_cap": 0}, r"attention_cap=0 must be a positive number or None"),
        ({"embedding_scale": None}, r"embedding_scale=None must be a positive number$"),
        ({"norm_offset": "1"}, r"norm_offset='1' must be a number$"),
        ({"padded_vocab": 60}, r"padded_vocab=60 is less than vocab=64"),
        ({"rotary": Rotary(scaling=DividedScaling((1.0,)))}, r"has 1 divisors.*8 dim.*4 pairs"),
        ({"gate_clamp": 7.0}, r"gate_clamp=7\.0 must be a GateClamp\(\) or None"),
        (
            {"gate_clamp": GateClamp(), "activation": "relu"},
            r"gate_clamp needs gated=True and activation=\"silu\"",
        ),
        ({"learned_positions": 0}, r"learned_positions=0 must be a positive integer"),
        ({"alibi": -1.0}, r"alibi=-1\.0 must be a positive number or None"),
        ({"sinks": 1}, r"sinks=1 must be True or False"),
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
        ({"scaling": "yarn"}, r"scaling='yarn' must be a LinearScaling, Llama3Scaling"),
    ],
)
def test_refuses_a_rotary_setting(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotary(**settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LinearScaling(0.0), r"LinearScaling: factor=0\.0 must be a positive number"),
        (lambda: Llama3Scaling(8.0, 0), r"original_positions=0 must be a positive integer"),
        (lambda: Llama3Scaling(8.0, 8192, 4.0, 4.0), r"high_frequency_factor=4\.0 must be greater"),
        (lambda: YarnScaling(4.0, 4096, attention_factor=-1), r"attention_factor=-1 must be"),
        (lambda: DividedScaling(()), r"divisors=\(\) must be positive numbers"),
        (lambda: DynamicScaling(0.5, 8), r"factor=0\.5 must be 1 or more"),
        (lambda: LongRopeScaling(8, (1.0,), (1.0, 2.0)), r"short has 1 divisors and long 2"),
        (
            lambda: Rotary(scaling=DynamicScaling(2.0, 8)).frequencies(8),
            r"DynamicScaling depends on how many positions .*config\.for_room\(positions\)",
        ),
    ],
)
def test_refuses_a_scaling(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_biases_by_name() -> None:
    some = dataclasses.replace(TINY_GROUPED, biases=["kv", "q"])
    assert some.biases == ("q", "kv")
    assert hash(some) == hash(dataclasses.replace(TINY_GROUPED, biases=("q", "kv")))
    assert some.parameters - TINY_GROUPED.parameters == 2 * 8 * (8 + 2 * 2)
    assert not TINY_MULTIHEAD.has_bias("unembedding")
    assert TINY_MULTIHEAD.has_bias("norm")
    assert not TINY_MULTIHEAD.has_bias("gate")


def test_parameters_of_sinks_and_a_norm_of_the_embedding() -> None:
    more = dataclasses.replace(TINY_PADDED, sinks=True, embedding_norm=True)
    assert more.parameters - TINY_PADDED.parameters == TINY_PADDED.layers * 6 + TINY_PADDED.d_model
    assert more.stored_parameters - TINY_PADDED.stored_parameters == (
        TINY_PADDED.layers * 8 + TINY_PADDED.d_model
    )


def test_slopes_are_the_papers() -> None:
    eight = dataclasses.replace(TINY_MULTIQUERY, heads=8, rotary=None, alibi=1.0)
    assert alibi_slopes(eight).tolist() == [2.0**-i for i in range(1, 9)]
    six = dataclasses.replace(TINY_PADDED, rotary=None, alibi=2.0)
    # Those of 4 heads, then every other of 8, then padding.
    assert alibi_slopes(six).tolist() == [0.5, 0.125, 0.03125, 2.0**-7, 1.0, 0.25, 0.0, 0.0]


def test_stored_tokens() -> None:
    padded = dataclasses.replace(TINY_GROUPED, vocab=59, padded_vocab=64)
    assert padded.stored_parameters - padded.parameters == 2 * 5 * 32
    assert padded.layer_parameters == TINY_GROUPED.layer_parameters


def test_odd_heads_need_no_rotary() -> None:
    assert dataclasses.replace(TINY_MULTIQUERY, d_head=7, rotary=None).d_head == 7


def test_models_have_names() -> None:
    assert model("palm-540b") is PALM_540B
    with pytest.raises(ValueError, match=r"no model named 'palm'; there are palm-8b, palm-62b"):
        model("palm")
