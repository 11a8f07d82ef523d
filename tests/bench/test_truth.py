"""Figures that others measured, as data, and their table."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench.decoder_suite.phases import Phase
from bench.decoder_suite.steps import StepRow
from bench.truth import links, measure, memory, models, report
from bench.truth.measure import Outcome
from bench.truth.programs import Collective, Permute, Step, ring_order
from bench.truth.records import GROUPS, LINKS, Record, Source
from collective_einsum.ruler.replay import WIDTH

SOURCE = Source(name="somebody")
SMALL = Record(
    group=LINKS,
    label="permute of 4 KiB",
    source=SOURCE,
    target="v5p:2x2x1",
    program=Permute(bytes=4096),
    measured=5.0,
    unit="us",
)


def outcome(predicted: float | None, **changes: object) -> Outcome:
    record = dataclasses.replace(SMALL, **changes)
    refused = "" if predicted else "there is no such chip."
    seconds = record.measured_seconds
    return Outcome(
        record=record, measured_seconds=seconds, predicted_seconds=predicted, refused=refused
    )


def test_every_record_has_a_time() -> None:
    records = [*links.records(), *memory.records(), *models.records()]
    assert {record.group for record in records} == set(GROUPS[:3])
    assert all(1e-6 < record.measured_seconds < 0.1 for record in records)
    assert len({(r.label, r.target) for r in records}) == len(records)
    # The published fits of a permute: 4.55 us and 86.3 GB/s on v5p, 2.29 us and 86.8 GB/s on v6e.
    seconds = {(r.target, r.label): r.measured_seconds for r in records}
    for slice_, chips, fixed, bandwidth in (
        ("v5p:2x2x1", 4, 4.55e-6, 86.3e9),
        ("v6e:2x4", 8, 2.29e-6, 86.8e9),
    ):
        fit = fixed + 2**26 / bandwidth
        assert seconds[slice_, f"permute of 64 MiB, ring of {chips}"] == pytest.approx(
            fit, rel=0.01
        )


def test_rates_become_times() -> None:
    by_label = {(r.label, r.target): r for r in memory.records()}
    copy = by_label["copy of 33.5 MB", "v6e:2x2"]
    assert copy.measured_seconds == pytest.approx(67.1e6 / 1359.6e9, rel=1e-3)
    dot = by_label["bf16 1024 x 1024 x 1024", "tpu7x:2x2x1"]
    assert dot.measured_seconds == pytest.approx(2 * 1024**3 / 349.73e12)
    with pytest.raises(ValueError, match="unit 'm' must be one of us, ms"):
        _ = dataclasses.replace(copy, unit="m").measured_seconds
    step = models.records()[0]
    with pytest.raises(ValueError, match="unit 'GB/s'"):
        _ = dataclasses.replace(step, unit="GB/s").measured_seconds


def test_the_rows_of_the_paper_are_its_published_lines() -> None:
    records = models.paper_records()
    assert len(records) == 21
    ms = {record.label: record.measured for record in records}
    assert ms["decode, batch 64, bf16"] == 36.23
    assert ms["prefill, batch 512, WG XYZ"] == pytest.approx(85.2e3, rel=0.05)
    programs = [record.program for record in records]
    assert all(isinstance(p, Step) and p.layers_only for p in programs)
    assert all(p.phase.schedule == "blocking" for p in programs if isinstance(p, Step))


def test_a_step_of_unrolled_layers_has_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = next(r for r in models.records() if r.label == "Llama-3.1-70B, TP16, batch 8")
    assert record.bundles
    assert isinstance(record.program, Step)
    assert record.program.phase.unrolled

    def one(phase: Phase, target: str, directory: object) -> StepRow:
        layers = phase.config.layers
        return StepRow(phase, target, layers_seconds=layers * 7e-5, step_seconds=6e-3)

    monkeypatch.setattr(measure, "step", one)
    found = measure.predict(record, tmp_path)
    assert found.predicted_seconds == pytest.approx(6e-3)
    layers = dataclasses.replace(record.program, layers_only=True)
    found = measure.predict(dataclasses.replace(record, program=layers), tmp_path)
    assert found.predicted_seconds == pytest.approx(80 * 7e-5)

    def refuses(phase: Phase, target: str, directory: object) -> StepRow:
        return StepRow(phase, target, refused="no memory")

    monkeypatch.setattr(measure, "step", refuses)
    found = measure.predict(record, tmp_path)
    assert (found.predicted_seconds, found.refused) == (None, "no memory")


def test_some_programs_are_predicted_by_bundles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places are those of the list that was asked for, whichever processes predict."""
    asked = [*models.records(), SMALL]
    counting: list[int] = []
    counted: dict[str, bool] = {}

    def predicts(record: Any, _: object) -> str:
        counted[record.label] = bool(counting)
        counting.clear()
        return record.label

    def processes(function: Any, arguments: Any, workers: int, *, apart: Any) -> Any:
        for at, each in enumerate(arguments):
            yield at, function(*each)
            assert counted[each[0].label] == apart[at]

    monkeypatch.setattr(measure, "in_processes", processes)
    monkeypatch.setattr(measure, "predict", predicts)
    monkeypatch.setattr(measure.bundles, "start", lambda: counting.append(1))
    found = dict(measure.predict_all(asked, "", 1))
    assert found == {place: record.label for place, record in enumerate(asked)}
    by_bundles = {label for label, mark in counted.items() if mark}
    assert by_bundles == {record.label for record in asked if "70B" in record.label}


def test_neighbours_on_the_ring_are_linked() -> None:
    places = [(x, y, 5) for y in range(2) for x in range(4)]
    order = ring_order(places)
    assert sorted(order) == list(range(8))
    for sender, receiver in itertools.pairwise([*order, order[0]]):
        distance = sum(abs(a - b) for a, b in zip(places[sender], places[receiver], strict=True))
        assert distance == 1
    with pytest.raises(ValueError, match=r"no ring is known for a slice of sides \[3, 3\]"):
        ring_order([(x, y) for x in range(3) for y in range(3)])


def test_the_table_says_what_was_found() -> None:
    bound = {"label": "bound", "upper_bound": True}
    outcomes = [
        outcome(4e-6),
        outcome(5.4e-6, label="another"),
        outcome(None, target="tpu9:2x2", label="unknown"),
        outcome(1e-6, **bound),
        outcome(6e-6, **{**bound, "label": "broken"}),
    ]
    text = report.print_outcomes(outcomes)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "not modelled" in text
    assert (
        "Not modelled, 1 of the rows, the first unknown on tpu9:2x2: there is no such chip." in text
    )
    found = report.found(outcomes)
    assert found[0] == (
        "links and collectives: 2 predictions, median error 14.0%, worst -20.0% (permute of 4 KiB on "
        "v5p:2x2x1)."
    )
    assert found[1] == (
        "1 of 2 predictions are below their upper bound, and 1 above: broken on v5p:2x2x1."
    )
    assert found[2] == (
        "So 1 of 2 measured figures are predicted within 10%, with a median error of 14.0%; 1 figures "
        "are not modelled."
    )
    assert report.found(outcomes[2:3]) == ["So no figure is modelled."]


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["truth", "--target", "v4:4x4x4"]) == 2
    error = capsys.readouterr().err
    assert "unrecognized arguments: --target" in error
    assert error.count("\n") == 1


@pytest.mark.tpu
def test_a_gather_is_replayed_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gather = Collective(
        kind="all-gather", shape=(512, 8192), dtype="bfloat16", sides=(2, 2), axes=("y",)
    )
    record = dataclasses.replace(SMALL, target="v5e:2x2", program=gather)
    first = measure.predict(record, tmp_path)
    # Half of the result over one link of 45 GB/s, one hop and the fixed cost.
    assert first.predicted_seconds == pytest.approx(2**23 / 45e9 + 3e-6, rel=1e-3)

    def none(*_: object) -> None:
        raise RuntimeError("it is in the cache")

    monkeypatch.setattr(measure, "replay", none)
    assert measure.predict(record, tmp_path) == first


@pytest.mark.tpu
def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unknown = dataclasses.replace(SMALL, target="tpu9:2x2", label="unknown")
    monkeypatch.setattr(measure, "records", lambda full: [SMALL, unknown] if full else [SMALL])
    path = tmp_path / "rows.json"
    arguments = ["--cache", str(tmp_path / "cache"), "--workers", "1", "--json", str(path)]
    assert command.main(["truth", "--full", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "So " in printed
    first, second = json.loads(path.read_text())["outcomes"]
    assert first["predicted_seconds"] > 1e-6
    assert second["predicted_seconds"] is None
    assert "'tpu9:2x2'" in second["refused"]
