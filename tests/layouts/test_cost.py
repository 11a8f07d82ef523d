"""The analytical model: its sums, its limits, and what it says of layouts."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import collective_einsum as ce
import layouts
from bench.paper import formulas as paper_forms
from bench.paper import published
from collective_einsum.chips import as_chip
from layouts.cost.item_seconds import transfer_seconds
from layouts.cost.layer_cost import layer_seconds
from layouts.cost.layer_items import Einsum, Load, Transfer
from layouts.cost.step_cost import Cost, cost
from layouts.cost.workload import load
from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    MT_NLG_530B,
    PALM_8B,
    PALM_62B,
    PALM_540B,
)
from layouts.planning.search import ATTENTIONS, FEEDFORWARDS

CUBE = {"x": 4, "y": 4, "z": 4}
CHIP = ce.TPU_V4


def of(
    feedforward: str = "WS 2D batch",
    attention: str = "batch xyz",
    config: ModelConfig = PALM_540B,
    sizes: Any = CUBE,
    overlap: Any = "auto",
    **asked: Any,
) -> Cost:
    asked = {"phase": "decode", "batch": 64, "context": 2048} | asked
    plan = layouts.Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
    return cost(config, plan, sizes, load(**asked), CHIP, overlap)


MATRICES = PALM_540B.stored_parameters - PALM_540B.vocab * PALM_540B.d_model
# The one key-value head is on all chips of yz.
KEYS = 118 * 18432 * 2 * 256
SHARE = (MATRICES - KEYS) / 64 + KEYS / 4


def test_weights_are_read_once_and_stored_once() -> None:
    """Each chip holds and streams 1/n of what the model stores, in every stationary layout."""
    for feedforward in ("WS 2D", "WS 2D batch", "WS 1D"):
        for weights, size in (("bf16", 2), ("int8", 1)):
            found = of(feedforward, weights=weights)
            assert found.weight_bytes == pytest.approx(size * SHARE, rel=1e-3)
            assert found.memory.weights == pytest.approx(found.weight_bytes, rel=0.002)


def test_gathered_weights_are_read_whole() -> None:
    found = of("WG XYZ", phase="prefill", length=2048)
    assert found.weight_bytes == pytest.approx(2 * MATRICES, rel=1e-3)
    assert found.memory.weights == pytest.approx(2 * SHARE, rel=1e-3)


def test_flops_are_those_of_the_parameters() -> None:
    """2 N a token, padding included (section 2), and attention's."""
    found = of(batch=512)
    attention = 118 * 4 * 8 * 48 * 256 * 2049
    assert found.flops == pytest.approx(2 * 512 * SHARE + attention, rel=1e-3)


def test_the_cache_of_batch_sharded_attention() -> None:
    """Section 3.3: batch sharding divides what heads sharding replicates."""
    heads, batch = of("WS 2D", "heads"), of("WS 2D", "batch xyz")
    assert batch.cache_bytes == 118 * 2 * 2048 * 256 * 2
    assert heads.cache_bytes == 64 * batch.cache_bytes
    assert batch.memory.cache == batch.cache_bytes
    assert of(cache="int8").memory.cache == pytest.approx(batch.memory.cache * (256 + 4) / 512)


@pytest.mark.parametrize(("attention", "batch"), published.LONGEST_CONTEXT)
def test_longest_context(attention: str, batch: int) -> None:
    """Table 1, which the paper rounds."""
    found = paper_forms.longest_context(attention, batch)
    assert found == pytest.approx(published.LONGEST_CONTEXT[attention, batch], rel=0.011)


def test_bytes_of_a_2d_weight_stationary_layer() -> None:
    """Appendix A.2.1, for a feedforward of two matrices, the attention's part left out."""
    config = dataclasses.replace(PALM_540B, gated=False)
    found = of("WS 2D", config=config, overlap="none")
    closed = layouts.paper_closed_forms.weight_stationary_2d(64, 18432, 73728, CUBE)
    einsums = [i for i in found.items if isinstance(i, Einsum)]
    ffn = [i for name in ("w_in", "w_out") for i in einsums if name in i.names]
    moved = sum(t.bytes for i in ffn for t in i.transfers)
    # The sum over yz is of both output matrices, and so is the gather before both inputs; each
    # counts once here.
    both = sum(t.bytes for t in found.items if isinstance(t, Transfer) and "yz" in t.name)
    gather = ffn[0].gather
    assert gather is not None
    assert moved + both + gather[1].bytes == closed


@pytest.mark.parametrize(
    ("kind", "axes", "bytes_", "seconds"),
    [
        # Appendix A.1: D/bw, bw of two links; two hops, and 2 us of every collective.
        ("all-gather", ("x",), 4e6, 4e6 * 3 / 4 / 90e9 + 2e-6 + 2e-6),
        ("reduce-scatter", ("y", "z"), 4e6, 4e6 * 15 / 16 / 180e9 + 4e-6 + 2e-6),
        ("all-reduce", ("x",), 4e6, 2 * (4e6 * 3 / 4 / 90e9 + 2e-6) + 2e-6),
        # What an all-gather of the whole, 4 times as large, would take is 4 times as much.
        ("all-to-all", ("x",), 4e6, 16e6 / 4 / 90e9 + 2e-6 + 2e-6),
    ],
)
def test_collectives(kind: Any, axes: tuple[str, ...], bytes_: float, seconds: float) -> None:
    transfer = Transfer("", kind, axes, 4 ** len(axes), bytes_)
    assert transfer_seconds(transfer, CUBE, CHIP) == pytest.approx(seconds)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([PALM_8B, PALM_62B, PALM_540B, MT_NLG_530B]),
    st.sampled_from(sorted(FEEDFORWARDS)),
    st.sampled_from(sorted(ATTENTIONS)),
    st.sampled_from(list(itertools.product((1, 2, 4), repeat=3))),
    st.sampled_from([64, 128, 512]),
    st.sampled_from(["bf16", "int8"]),
    st.sampled_from(["decode", "prefill"]),
)
def test_no_step_is_faster_than_its_limits(
    config: ModelConfig,
    feedforward: str,
    attention: str,
    shape: tuple[int, int, int],
    batch: int,
    weights: str,
    phase: str,
) -> None:
    assume(feedforward != "WS 2D position" or (attention, phase) == ("heads", "prefill"))
    sizes = dict(zip("xyz", shape, strict=True))
    how: dict[str, Any] = {"batch": batch, "weights": weights, "phase": phase, "length": 1024}
    auto, none = (
        of(feedforward, attention, config, sizes, overlap, **how) for overlap in ("auto", "none")
    )
    for found in (auto, none):
        assert found.seconds > max(found.flop_seconds, found.hbm_seconds)
        assert 0 < found.mfu < 1
        assert found.chip_seconds_per_token * found.load.tokens == pytest.approx(
            found.chips * found.seconds
        )
        parts = (found.matmul_seconds, found.attention_seconds, found.exposed_seconds)
        assert min(parts) >= 0
        assert (found.exposed_seconds > 0) == (found.chips > 1 and found.ici_seconds > 0)
    assert none.ici_bytes == auto.ici_bytes
    # What hides communication is chosen where it gains, but for what hiding costs.
    assert auto.seconds <= none.seconds * 1.1


@pytest.mark.parametrize("chip", ["v5e", "v6e", "v4"])
def test_scatters_over_a_plane_are_all_reduces(chip: str) -> None:
    """As `ce.cost` has them for einsums, where a torus has two axes."""
    sizes, plane = {"x": 1, "y": 4, "z": 4}, as_chip(chip).torus_dims == 2

    def seconds(kind: Any, axes: tuple[str, ...]) -> float:
        return transfer_seconds(Transfer("", kind, axes, 4 ** len(axes), 4e6), sizes, as_chip(chip))

    both = seconds("all-reduce", ("y", "z"))
    assert (seconds("reduce-scatter", ("y", "z")) == both) == plane
    assert seconds("reduce-scatter", ("z",)) < both


def _sums(axes: tuple[str, ...], bytes_: float) -> Transfer:
    return Transfer("sums", "all-reduce", axes, 4 ** len(axes), bytes_)


def test_all_reduces_in_a_row_are_one() -> None:
    """As the compiler makes them: their hops are waited for once."""

    def exposed(*items: Transfer) -> float:
        return layer_seconds(PALM_540B, items, CUBE, CHIP, "auto").exposed

    two, other = exposed(_sums(("x",), 1024), _sums(("x",), 3072)), _sums(("y", "z"), 1024)
    assert two == exposed(_sums(("x",), 4096)) < 2 * exposed(_sums(("x",), 1024))
    assert exposed(_sums(("x",), 1024), other) == exposed(_sums(("x",), 1024)) + exposed(other)


def test_gathered_weights_come_beside_all_that_is_before() -> None:
    """One after the other from the start of the layer, where the compiler runs them beside dots."""
    gather = Transfer("w_o", "all-gather", ("x",), 4, 18432 * 18432 * 2)
    stays = Einsum(("w_q",), 8192, 18432, (18432,), 2)
    small = Einsum(("w_kv",), 8192, 18432, (512,), 2)
    needs = Einsum(("w_o",), 8192, 18432, (18432,), 2, ("e", gather), True)
    waits = transfer_seconds(gather, CUBE, CHIP)

    def exposed(*items: Einsum, overlap: Any = "auto") -> float:
        return layer_seconds(PALM_540B, items, CUBE, CHIP, overlap).exposed

    before = layer_seconds(PALM_540B, (stays, small), CUBE, CHIP, "auto").matmul
    assert 0 < waits < before
    assert exposed(stays, small, needs) == 0
    # At the start of a layer nothing hides it; where gathers take longer than dots, the links never
    # wait, and dots do for what is left.
    assert exposed(needs, stays) == pytest.approx(waits)
    few = dataclasses.replace(needs, m=1024)
    dots = layer_seconds(PALM_540B, (small, few, few, few), CUBE, CHIP, "auto").matmul
    assert exposed(small, few, few, few, few) == pytest.approx(4 * waits - dots)
    assert exposed(stays, needs, overlap="none") == pytest.approx(waits)


def test_ici_bytes_are_split_by_links() -> None:
    found = of("WS 2D", "heads", sizes={"x": 4, "y": 2, "z": 4})
    # Over y and z together, y has one link where z has two; x has its own collectives.
    assert found.ici_bytes["y"] * 2 == pytest.approx(found.ici_bytes["z"])
    assert found.ici_bytes["x"] > 0


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"phase": "train"}, "phase='train' is neither"),
        ({"batch": 0}, "needs batch=, a positive integer; got 0"),
        ({"context": None}, "needs context=, a positive integer; got None"),
        ({"phase": "prefill"}, "needs length=, a positive integer; got None"),
        ({"weights": "fp4"}, "weights='fp4' is neither"),
        ({"cache": "fp8"}, "cache='fp8' is neither"),
    ],
)
def test_errors(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        of(**how)


@pytest.mark.parametrize(
    "chip", [ce.TPU_V4, ce.TPU_V5E, ce.TPU_V5P, ce.TPU_V6E, ce.TPU_7X, ce.H100]
)
@pytest.mark.parametrize("itemsize", [1, 2, 4, 8])
def test_weights_of_every_width_have_a_cost(chip: ce.Chip, itemsize: int) -> None:
    """Emulated devices compute in 64 bits too, and take the schedules and options of the chip named."""
    asked = Load(64, 1, 2048, itemsize, itemsize)
    predicted = cost(PALM_8B, "WS 2D all-reduce, batch xyz", (2, 2, 2), asked, chip)
    assert math.isfinite(predicted.seconds)
    assert predicted.seconds > 0
