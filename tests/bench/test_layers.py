"""What a layer of a decoder costs: the replay's parts, and the run on emulated devices."""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile

import pytest

import collective_einsum as ce
import layouts
from bench import __main__ as command
from bench.decoder_suite import layers, phases
from bench.decoder_suite import run_small as layers_run
from bench.decoder_suite.phases import Phase
from collective_einsum.ruler.compile.targets import target
from collective_einsum.ruler.replay import WIDTH
from layouts.mesh.axis_collectives import AXES
from layouts.partitionings.attention_placement import place
from layouts.partitionings.partitioning import misfit
from layouts.partitionings.row_order import check_rows

SLICE = "v4:2x2x2"
PHASE = Phase("palm-8b", "decode", 8, 256, "bf16", "WS 2D batch")


@functools.cache
def row() -> layers.LayerRow:
    with tempfile.TemporaryDirectory() as directory:
        return layers.measure(PHASE, SLICE, directory)


@pytest.mark.tpu
def test_the_parts_of_a_layer_make_the_whole() -> None:
    found = row()
    assert not found.refused
    assert found.seconds == pytest.approx(sum(found.parts.values()), rel=1e-3)
    assert all(found.parts[name] > 0 for name in ("matmul", "attention", "exposed", "rest"))
    assert found.parts["exposed"] == pytest.approx(sum(found.exposed_by_op.values()), rel=1e-2)
    assert list(found.exposed_by_op.values()) == sorted(found.exposed_by_op.values(), reverse=True)
    # Embedding and unembedding are in the step, not in the layers.
    assert 0.8 * found.step_seconds < found.seconds * PHASE.config.layers < found.step_seconds


@pytest.mark.tpu
def test_the_options_of_a_step_can_be_chosen() -> None:
    mesh = layers.mesh_of("v6e:2x2")
    blocking = dataclasses.replace(PHASE, schedule="blocking")

    def options(phase: Phase, name: str) -> dict[str, bool | int | str]:
        return dataclasses.replace(phase, options=name).compiler_options(mesh)

    chip, offloaded = (ce.compiler_options("v6e", sparse_cores=on) for on in (False, True))
    # Named options say of all that a step chooses itself whether it is on.
    off = dict.fromkeys(offloaded.keys() - chip.keys(), False)
    assert off
    assert options(blocking, "step") == {}
    assert options(PHASE, "step") == chip
    assert options(PHASE, "chip") == options(blocking, "chip") == off | chip
    assert options(blocking, "sparse_cores") == offloaded
    assert set(phases.OPTIONS) == {"step", "chip", "sparse_cores"}
    one = dataclasses.replace(blocking, layers=1, options="sparse_cores")
    with tempfile.TemporaryDirectory() as directory:
        _, program = layers.replayed(one, mesh, "v6e:2x2", layers.Cache(directory))
    assert 'async_execution_thread="sparsecore"' in program.text


@pytest.mark.tpu
def test_a_layer_is_no_faster_than_its_bytes() -> None:
    found, config = row(), PHASE.config
    chip = target(SLICE).chip
    assert chip is not None
    embedding = config.vocab * config.d_model
    layer_bytes = 2 * (config.parameters - embedding) / config.layers / 8
    assert found.seconds > layer_bytes / chip.hbm_bandwidth
    assert found.mfu == pytest.approx(
        2 * (config.parameters - embedding) * 8 / (8 * chip.bf16_flops) / (found.seconds * 32)
    )
    assert 2 * config.parameters / 8 < found.chip_bytes < chip.hbm_bytes


@pytest.mark.tpu
def test_unrolled_layers_are_a_step_without_its_ends() -> None:
    phase = dataclasses.replace(PHASE, layers=4, unrolled=True)
    with tempfile.TemporaryDirectory() as directory:
        found = layers.measure(phase, SLICE, directory)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert 0 < 4 * found.seconds < found.step_seconds
    # Weights come ahead of their matmuls, as they do not in a loop.
    assert found.seconds < row().seconds
    assert "auto, unrolled" in layers.print_rows([found])


@pytest.mark.tpu
def test_the_table_shows_the_row_and_what_it_waits_for() -> None:
    text = layers.print_rows([row()])
    assert text.startswith("predicted")
    for word in ("decode 8 x 256", "WS 2D batch", "MFU", "GiB a chip", "waits for"):
        assert word in text


@pytest.mark.tpu
def test_the_table_of_long_steps_fits_a_terminal() -> None:
    """As wide as it gets: a prefill of the largest model, in the layout with the longest name."""
    phase = dataclasses.replace(
        PHASE, kind="prefill", batch=1024, length=32768, model="mt-nlg-530b"
    )
    phase = dataclasses.replace(phase, feedforward="WS 2D all-reduce")
    parts = dict.fromkeys(row().parts, 987654.3e-6)
    long = dataclasses.replace(row(), phase=phase, parts=parts, seconds=9876543.2e-6)
    assert max(map(len, layers.print_rows([long]).splitlines())) <= WIDTH


@pytest.mark.tpu
def test_what_does_not_fit_is_refused_in_the_table() -> None:
    with tempfile.TemporaryDirectory() as directory:
        phase = Phase("palm-8b", "decode", 3, 256, feedforward="WS 2D position")
        found = layers.measure(phase, SLICE, directory)
    assert "shards positions, and BatchSharded" in found.refused
    assert "shards positions, and BatchSharded" in layers.print_rows([found])


@pytest.mark.tpu
def test_what_does_not_fit_is_refused() -> None:
    phase = Phase("palm-540b", "decode", 8, 256, attention="heads")
    with tempfile.TemporaryDirectory() as directory:
        found = layers.measure(phase, SLICE, directory)
    assert found.refused.startswith("does not fit: ")
    assert "HBM" in layers.print_rows([found])


def test_phases_are_those_asked_for() -> None:
    found = phases.chosen(
        "palm-8b", "decode", 8, 256, "int8", ("WS 1D", "WS 2D"), ("heads",), ("blocking", "auto")
    )
    assert [(p.feedforward, p.schedule) for p in found] == [
        ("WS 1D", "blocking"),
        ("WS 1D", "auto"),
        ("WS 2D", "blocking"),
        ("WS 2D", "auto"),
    ]
    assert found[0].plan == layouts.Partitioning(
        layouts.WeightStationary1D(), layouts.HeadSharded()
    )
    again = phases.chosen(
        "palm-8b", "decode", 8, 256, "int8", ("WS 1D",), ("heads",), ("auto",), unrolled=True
    )
    assert [p.schedule_name for p in again] == ["auto, unrolled"]
    assert {p.options for p in found} == {"step"}
    published = phases.chosen("palm-540b", None, 0, 0, "", (), (), ("auto",))
    assert len(published) == 5
    assert {p.kind for p in published} == {"decode", "prefill"}


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--feedforward", "WS 3D", "there is no feedforward layout 'WS 3D'; choose among"),
        ("--attention", "head", "there is no attention layout 'head'; choose among"),
        ("--model", "palm", "palm"),
        ("--schedules", "fast", "'fast'"),
    ],
)
def test_a_mistyped_argument_is_answered_in_words(
    capsys: pytest.CaptureFixture[str], argument: str, value: str, message: str
) -> None:
    assert command.main(["layers", "--phase", "decode", argument, value]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 100, 256, 1024])
def test_every_pair_that_runs_can_be_placed_on_any_number_of_devices(count: int) -> None:
    case = layers_run.Case.on(count)
    power = count & -count
    assert math.prod(case.sizes.values()) == power
    pairs = case.pairs()
    if power == 1:
        assert len(pairs) == 1
    else:
        assert {feedforward for feedforward, _ in pairs} == set(phases.FEEDFORWARDS)
        assert {attention for _, attention in pairs} == set(phases.ATTENTIONS)
    for pair in pairs:
        for plan, new in zip(case.plans(pair), (case.prompt, 1), strict=True):
            assert not misfit(case.config, case.sizes, plan)
            where = place(case.config, plan.feedforward, plan.attention, case.sizes)
            check_rows(case.batch, new, plan.feedforward, where, case.sizes)


@pytest.mark.tpu
@pytest.mark.parametrize("pair", [("WS 2D position", "heads"), ("WG XYZ", "batch xyz")])
def test_a_pair_lowers_on_more_devices_than_there_are(pair: tuple[str, str]) -> None:
    case = layers_run.Case.on(64)
    assert pair in case.pairs()
    mesh = target("v4:4x4x4").mesh(tuple(case.sizes.values()), AXES)
    reader, plan = case.plans(pair)
    layouts.lower_prefill(case.config, mesh, batch=case.batch, length=case.prompt, plan=reader)
    layouts.lower_decode_step(case.config, mesh, batch=case.batch, context=case.prompt, plan=plan)


def test_a_wrong_pair_is_said_and_is_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [layers_run.RunRow("WS 2D", "heads", error, 1e-3, 1e-3) for error in (1e-6, 0.5)]
    monkeypatch.setattr(layers_run, "run", lambda _: iter(rows))
    assert command.main(["layers", "--target", "cpu:8"]) == 1
    printed = capsys.readouterr().out
    assert "a mesh 2x2x2 of cpu" in printed
    assert printed.count("WRONG") == 1


@pytest.mark.tpu
def test_the_devices_of_a_chip_lie_along_the_last_side() -> None:
    assert dict(layers.mesh_of("tpu7x:2x2x2").shape) == {"x": 2, "y": 2, "z": 4}
    assert dict(layers.mesh_of("v5e:4x4").shape) == {"x": 4, "y": 4, "z": 1}
