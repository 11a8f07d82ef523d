"""What norms cost, and the parts of decode steps against those of replayed ones."""

import dataclasses
from typing import Any

import pytest

import layouts
from collective_einsum import TPU_V4
from layouts import Partitioning
from layouts.cost import cost, load
from layouts.cost.norm_cost import replicated_bytes, waiting_seconds
from layouts.models.open_models import LLAMA_31_8B
from layouts.partitionings import ATTENTIONS, FEEDFORWARDS

CUBE = {"x": 4, "y": 4, "z": 4}
SERIAL = dataclasses.replace(layouts.PALM_540B, block="serial")


@pytest.mark.parametrize(
    ("layout", "overlap", "axes", "microseconds"),
    [
        # One all-reduce, two hops there and two back on each ring of four; few bytes.
        ("WS 2D batch", "auto", 1, 2 * 2 + 2),
        ("WS 2D", "auto", 3, 2 * 2 + 2 / 3),
        # Two hops of one collective.
        ("WS 2D batch", "none", 1, 2 * 1 + 2),
        # The matmul of replicated tokens does not wait.
        ("WS 2D all-reduce", "auto", 0, 0.0),
        ("WG XYZ", "auto", 0, 0.0),
    ],
)
def test_a_norm_waits_for_its_sum(
    layout: str, overlap: str, axes: int, microseconds: float
) -> None:
    for config, norms in ((layouts.PALM_540B, 1), (SERIAL, 2)):
        waits = waiting_seconds(config, FEEDFORWARDS[layout], CUBE, 128, TPU_V4, overlap)
        assert waits * 1e6 == pytest.approx(norms * axes * microseconds, rel=0.01)


@pytest.mark.parametrize(
    ("norm", "span", "microseconds"),
    [
        (None, "head", 0.0),
        # Figures replayed with libtpu 0.0.50.1; a step without these norms takes 747.6.
        ("rmsnorm", "head", (785.1 - 747.6) / 4),
        ("rmsnorm", "heads", (820.4 - 747.6) / 4),
        ("layernorm", "heads", (915.2 - 747.6) / 4),
    ],
)
def test_norms_of_queries_and_keys(norm: Any, span: Any, microseconds: float) -> None:
    """Layers of Llama 3.1 8B, decoding 64 sequences on v4:2x2x4."""
    plain = dataclasses.replace(LLAMA_31_8B, layers=1)
    normed = dataclasses.replace(plain, query_key_norm=norm, query_key_norm_span=span)
    asked = load("decode", batch=64, context=2048)
    without, found = (
        cost(config, "WS 2D all-reduce, batch z", (1, 4, 4), asked, TPU_V4)
        for config in (plain, normed)
    )
    more = 1e6 * (found.seconds - without.seconds)
    assert more == pytest.approx(microseconds, rel=0.35, abs=1e-3)
    assert (found.exposed_seconds > without.exposed_seconds) == (span == "heads")


def test_norms_pass_over_replicated_tokens() -> None:
    rows = 128 * 18432 // 4 * 2
    for config, passes in ((layouts.PALM_540B, 7), (SERIAL, 10.5)):
        layout = FEEDFORWARDS["WS 2D all-reduce"]
        assert replicated_bytes(config, layout, CUBE, 128) == passes * rows
        assert replicated_bytes(config, FEEDFORWARDS["WS 2D batch"], CUBE, 128) == 0


@pytest.mark.parametrize(
    ("layout", "parts"),
    [
        ("WS 2D batch", (18.99, 1.81, 6.02, 2.28)),
        ("WS 2D all-reduce", (18.99, 1.81, 5.12, 3.94)),
    ],
)
def test_the_parts_of_a_step_are_those_replayed(layout: str, parts: tuple[float, ...]) -> None:
    """PaLM 540B in bf16 on v4:4x4x4, 128 sequences, milliseconds replayed with libtpu 0.0.50.1."""
    plan = Partitioning(FEEDFORWARDS[layout], ATTENTIONS["batch xyz"])
    asked = load("decode", batch=128, context=2048)
    found = cost(layouts.PALM_540B, plan, CUBE, asked, TPU_V4)
    seconds = (
        *(found.matmul_seconds, found.attention_seconds),
        *(found.exposed_seconds, found.rest_seconds),
    )
    assert [1e3 * each for each in seconds] == pytest.approx(parts, rel=0.1)


@pytest.mark.parametrize(("batch", "tensor_parallel_wins"), [(8, True), (64, True), (128, False)])
def test_two_replicas_win_from_a_batch_on(batch: int, tensor_parallel_wins: bool) -> None:
    """Llama 3.1 70B in int8 on v5e:4x4; measured by others, they cross between batch 64 and 128."""
    whole, half = (
        layouts.plan(
            "llama-3.1-70b",
            chip="v5e",
            mesh_shape=shape,
            phase="decode",
            batch=sequences,
            context=2048,
            weights="int8",
            cache="int8",
        ).cost.step_seconds
        for shape, sequences in (((1, 4, 4), batch), ((1, 2, 4), batch // 2))
    )
    assert (whole < half) == tensor_parallel_wins
