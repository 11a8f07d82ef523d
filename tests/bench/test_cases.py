"""The timed einsums have the shapes they should, and every schedule of theirs can be lowered."""

from __future__ import annotations

import functools
import itertools
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from bench.einsum_suite import feedforward_forms as feedforward
from bench.einsum_suite.cases import (
    BY_OPTIONS,
    FORMS,
    LAYERS,
    ON_SPARSE_CORES,
    PLAIN,
    ROWS,
    Case,
    cases,
    mesh_of,
    parse_schedule,
)
from bench.einsum_suite.feedforward_forms import FeedForward
from bench.einsum_suite.tasks import find_task, short_tasks, tasks
from collective_einsum.ruler.compile.targets import target


def test_the_table() -> None:
    everything = list(cases())
    # Four einsums with each number of rows and three that gather weights, in bf16 and in int8.
    assert len(everything) == len(set(everything)) == 2 * (4 * len(ROWS) + 3)
    flat = [case for case in cases(dims=2) if case.moves_weights]
    assert {case.form for case in flat} == {"weights gathered x", "weights gathered xy"}
    assert {case.rows for case in flat} == {2048}


@pytest.mark.tpu
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_flops_are_those_of_the_whole_einsum(form: str, weights: str) -> None:
    """All chips together do the einsum once; where weights move, each has rows of its own."""
    case = Case(form, 64, weights)
    text = case.lower(mesh_of(target("v4:4x4x4")), "blocking").as_text()
    share = {"x": 16, "xy": 4, "xyz": 1}[form.split()[-1]] if case.moves_weights else 64
    (dot,) = re.findall(r"dot_general .*: \(tensor<(\d+)x(\d+)x.*, tensor<(\d+)x(\d+)x", text)
    rows, contracted, again, columns = map(int, dot)
    assert contracted == again
    assert rows * contracted * columns == 64 * 18432 * 73728 // share
    assert ("x18432xi8>" in text or "x73728xi8>" in text) == (weights == "int8")


@pytest.mark.tpu
@pytest.mark.parametrize("form", FORMS)
def test_every_schedule_is_served(form: str) -> None:
    case = Case(form, 64, "bf16")
    mesh = mesh_of(target("v4:4x4x4"))
    variants = case.variants(ce.TPU_V4)
    texts = {str(schedule): case.lower(mesh, schedule).as_text() for schedule in variants}
    # One chunk of a gather that goes directly is blocking, and so are plain jits with options.
    assert len(set(texts.values())) >= len(texts) - 4
    for auto, chip in (("auto", ce.TPU_V4.under_options()), ("auto in jit", ce.TPU_V4)):
        assert texts[auto] in [text for name, text in texts.items() if "auto" not in name]
        choice = case.choice(mesh, chip)
        assert case.lower(mesh, choice.schedule).as_text() == texts[auto]


@pytest.mark.tpu
def test_options_are_those_of_what_compiles() -> None:
    mesh = mesh_of(target("v4:4x4x4"))
    options = ce.compiler_options(ce.TPU_V4)
    for case, ours in ((Case("gather x, W_out", 64), "auto"), (FeedForward(64), "ours")):
        assert case.options(ours, mesh) == options
        assert case.options("blocking", mesh) == case.options(f"{ours} in jit", mesh) == {}
    assert Case("gather x, W_out", 64).options(BY_OPTIONS, mesh) == options
    assert FeedForward(64).options("compiler yz asynchronous", mesh) == options
    assert FeedForward(64).options("compiler yz", mesh) == {}


@pytest.mark.tpu
def test_plain_jits_are_tried_with_all_options_that_a_chip_has() -> None:
    case = Case("gather x, W_out", 64)
    assert case.variants(ce.H100)[:2] == (PLAIN, "auto")
    assert case.variants(ce.TPU_V4)[:3] == (PLAIN, BY_OPTIONS, "auto")
    assert case.variants(ce.TPU_V6E)[:4] == (PLAIN, BY_OPTIONS, ON_SPARSE_CORES, "auto")
    mesh = mesh_of(target("v6e:2x2"))
    assert case.options(ON_SPARSE_CORES, mesh) == ce.compiler_options("v6e", sparse_cores=True)


@pytest.mark.tpu
def test_devices_of_a_chip_lie_along_the_last_axis() -> None:
    assert mesh_of(target("tpu7x:2x2x1")).shape == {"x": 2, "y": 2, "z": 2}
    assert mesh_of(target("tpu7x:4x4x4")).shape == {"x": 4, "y": 4, "z": 8}
    assert mesh_of(target("v6e:4x4")).shape == {"x": 4, "y": 4}


@pytest.mark.tpu
def test_the_feedforward() -> None:
    mesh = mesh_of(target("v4:4x4x4"))
    texts = [FeedForward(64).lower(mesh, form).as_text() for form in ("blocking", "ours")]
    assert texts[0] != texts[1]
    assert FeedForward(64).layers == LAYERS
    with pytest.raises(ValueError, match="no feedforward 'nonsense'"):
        FeedForward(64).lower(mesh, "nonsense")


@pytest.mark.parametrize(
    ("hidden", "rows"),
    [
        *itertools.product(["m", "f", feedforward.UNSHARDED], [False, True]),
        (feedforward.HALVES, True),
    ],
)
def test_the_feedforward_is_right(hidden: str, rows: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedforward, "_hidden", lambda *_: hidden)
    x, yz = ("x",), ("y", "z")
    keys = jax.random.split(jax.random.key(0), 4)
    c, w_up, w_gate, w_out = (
        jax.random.normal(key, shape)
        for key, shape in zip(keys, [(8, 16), (16, 32), (16, 32), (32, 16)], strict=True)
    )
    at = P(yz, x) if rows else P(None, (*x, *yz))
    mapped = jax.shard_map(
        functools.partial(feedforward.ours, x=x, yz=yz, rows=rows),
        mesh=jax.make_mesh((2, 2, 2), ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3),
        in_specs=(at, P(x, yz), P(x, yz), P(yz, x)),
        out_specs=at,
        check_vma=False,
    )
    whole = (jax.nn.silu(c @ w_gate) * (c @ w_up)) @ w_out
    np.testing.assert_allclose(jax.jit(mapped)(c, w_up, w_gate, w_out), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("count", "collectives"),
    [
        (8, {"all_reduce", "all_gather", "all_to_all"}),
        (64, {"all_gather", "collective_permute", "reduce_scatter"}),
        (512, {"all_gather", "all_to_all", "reduce_scatter"}),
    ],
)
def test_the_hidden_dimension_of_few_rows_stays_whole(count: int, collectives: set[str]) -> None:
    """Its sums over x are all-reduced, where a scatter and a gather of many rows move less. These may
    come in two parts."""
    text = FeedForward(count).lower(mesh_of(target("v4:4x4x4")), "ours").as_text()
    assert collectives <= set(re.findall(r"stablehlo\.(\w+)", text))
    assert ("all_reduce" in text) == ("all_reduce" in collectives)
    assert (text.count("stablehlo.all_to_all") == 4) == (count == 512)


@pytest.mark.tpu
def test_layers_that_are_written_out_have_arrays_of_their_own() -> None:
    found = list(feedforward.feedforwards(unrolled=True))
    assert [case.rows for case in found] == list(feedforward.UNROLLED_ROWS)
    scanned, unrolled = (
        FeedForward(64, unrolled=way).lower(mesh_of(target("v4:4x4x4")), "blocking").as_text()
        for way in (False, True)
    )
    assert "stablehlo.while" in scanned
    assert "stablehlo.while" not in unrolled
    main = next(line for line in unrolled.splitlines() if "func.func public @main" in line)
    assert main.count("tensor<18432x73728xbf16>") == 2 * LAYERS


def test_schedules_by_name() -> None:
    assert parse_schedule("latency") == "latency"
    assert parse_schedule("chunked") == "chunked"
    assert parse_schedule("chunked:1") == ce.Schedule("chunked", chunks=1)
    assert parse_schedule("chunked:4:m:bidirectional") == ce.Schedule(
        "chunked", "bidirectional", chunks=4, label="m"
    )
    assert parse_schedule("chunked:1+3:m:async") == ce.Schedule(
        "chunked", "async", chunks=(1, 3), label="m"
    )
    for wrong in ("chunked:m", "chunked:1+:m", "chunked:4:m:latency:more"):
        with pytest.raises(ValueError, match="is not chunked:CHUNKS"):
            parse_schedule(wrong)


def test_tasks() -> None:
    assert len(short_tasks()) == 2 * 3 * 5
    assert {task.case.name for task in tasks("v4:4x4x4", False, only="scatter x")} == {
        "W_in, scatter x"
    }
    assert {task.target for task in tasks("v5e:4x4", True)} == {"v5e:4x4"}
    task = find_task("gather x,", 8, "int8", "chunked:2:m", "v4:4x4x4")
    assert task.case == Case("gather x, W_out", 8, "int8")
    assert find_task("feed", 8, "bf16", "auto", "v4:4x4x4").schedule == "ours"
    assert find_task("feed", 8, "bf16", "auto", "v4:4x4x4").case == FeedForward(8)
    unrolled = FeedForward(8, unrolled=True)
    assert find_task("unrolled", 8, "bf16", "ours", "v4:4x4x4").case == unrolled
    # A whole name, though another one begins with it.
    found = find_task("weights gathered xy", 2048, "bf16", "auto", "v4:4x4x4")
    assert found.case.name == "weights gathered xy"
    with pytest.raises(ValueError, match="one of 'gather x, W_out'"):
        find_task("W_out", 8, "bf16", "auto", "v4:4x4x4")
    with pytest.raises(ValueError, match="none of 'gather yz, W_in'"):
        find_task("attention", 8, "bf16", "auto", "v4:4x4x4")
