"""The report that puts the paper's results beside ours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.decoder_suite import steps as steps_module
from bench.decoder_suite.phases import PAPER_540B, Phase
from bench.decoder_suite.steps import StepRow, Task, step
from bench.paper import formulas as paper_forms
from bench.paper import mt_nlg_end_to_end as end_to_end
from bench.paper import plan_regret as regret
from bench.paper import plots as paper_plots
from bench.paper import published
from bench.paper import report as paper
from bench.paper import rows as paper_rows
from collective_einsum import TPU_V4
from layouts import PALM_540B

SLICE = "v4:2x2x2"
DECODE = Phase("palm-8b", "decode", 8, 256, "bf16", layers=2)


def fake(phase: Phase, target: str, seconds: float, step_seconds: float = 0.0) -> StepRow:
    return StepRow(phase, target, seconds, {"matmul": seconds}, step_seconds or seconds, 2**30)


@pytest.mark.tpu
def test_a_step_is_split_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = step(DECODE, SLICE, tmp_path)
    assert not found.refused
    assert found.layers_seconds == pytest.approx(sum(found.parts.values()))
    # Two layers of a model whose embedding is as large as eight of them.
    assert found.layers_seconds < 0.6 * found.step_seconds

    def none(*_: object) -> None:
        raise RuntimeError("it is in the cache")

    monkeypatch.setattr(steps_module, "replayed", none)
    assert step(DECODE, SLICE, tmp_path) == found
    with pytest.raises(RuntimeError, match="in the cache"):
        step(dataclasses.replace(DECODE, batch=16), SLICE, tmp_path)


@pytest.mark.tpu
def test_what_cannot_be_sharded_is_refused_in_the_row(tmp_path: Path) -> None:
    found = step(dataclasses.replace(DECODE, feedforward="WS 2D position"), SLICE, tmp_path)
    assert "shards positions, and BatchSharded" in found.refused


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Task]]:
    """Replays that take 1.1 of the analytical model's seconds, less if scheduled by cost."""
    asked: dict[str, list[Task]] = {"tasks": []}

    def step_all(tasks: list[Task], cache: object, workers: int) -> Iterator[tuple[int, StepRow]]:
        asked["tasks"] = tasks
        for place, (phase, target) in enumerate(tasks):
            if phase.kind == "sample":
                yield place, fake(phase, target, 1e-4)
                continue
            share = 1.1 if phase.schedule == "blocking" else 0.9
            yield place, fake(phase, target, share * paper.analytical(phase, target).seconds)

    monkeypatch.setattr(paper, "step_all", step_all)
    monkeypatch.setattr(paper_plots, "_CHIPS", (8, 64))
    return asked


@pytest.mark.tpu
def test_the_quick_report(tmp_path: Path, replays: dict[str, list[Task]]) -> None:
    seen: list[str] = []
    how = {"full": False, "workers": 1}
    text = paper.report(tmp_path, tmp_path / "cache", progress=seen.append, **how)
    assert len(seen) == len(replays["tasks"]) == len(set(replays["tasks"]))
    assert "blocking against" in text
    assert "analytical against" in text
    assert "So our programs at their best are predicted to take " in text
    report = (tmp_path / "report.md").read_text()
    for words in (
        "Figure 3",
        "Table 1",
        "batch 64, int8",
        "27.85",
        "Published",
        "`--full` has all",
    ):
        assert words in report
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["crossovers"] == {"X": 16384, "XY": 65536, "XYZ": 786432}
    quick = [each for each in paper_rows.entries() if each.quick]
    assert len(document["lines"]) == len(quick) >= 10
    for line in document["lines"]:
        assert line["blocking_seconds"] == pytest.approx(1.1 * line["analytical_seconds"])
    for name in ("figure_1.png", "figure_3.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in report


@pytest.mark.tpu
def test_the_full_report_has_every_result(tmp_path: Path, replays: dict[str, list[Task]]) -> None:
    how = {"full": True, "workers": 1}
    text = paper.report(tmp_path, tmp_path / "cache", progress=lambda _: None, **how)
    report = (tmp_path / "report.md").read_text()
    for words in (
        *("Figure 1", "Figure 3", "Figure 6", "Figure 7", "Figure 8", "Figure B.1"),
        *(
            "Table 1",
            "Table 2",
            "Table 3",
            "Section 4.3",
            "MT-NLG 530B",
            "128 in, 8 out, batch 1024",
        ),
    ):
        assert words in report
    assert f"{len(regret.points())} points" in text
    assert all((tmp_path / f"figure_{name}.png").exists() for name in ("6", "7", "8", "b1"))
    document = json.loads((tmp_path / "report.json").read_text())
    assert len(document["regrets"]) == len(regret.points()) >= 40
    assert len(document["end_to_end"]) == 15


@pytest.mark.tpu
def test_errors_are_of_the_rows_with_published_figures() -> None:
    chosen = [each for each in paper_rows.entries() if each.published_seconds][:3]
    lines = [
        paper.Line(
            each,
            paper.analytical(each.blocking, each.target),
            fake(each.blocking, each.target, share * (each.published_seconds or 0)),
            None,
        )
        for each, share in zip(chosen, (1.05, 0.5, 0.9), strict=True)
    ]
    first = paper._errors(lines)[0]
    assert "median error 10.0%" in first
    assert "worst -50.0%" in first
    assert chosen[1].label in first


@pytest.mark.tpu
def test_what_does_not_fit_is_said() -> None:
    entry = next(each for each in paper_rows.entries() if each.published_seconds)
    refused = StepRow(entry.blocking, entry.target, refused="too large")
    line = paper.Line(entry, paper.analytical(entry.blocking, entry.target), refused, refused)
    assert line.seconds("blocking") is None
    assert line.error("best") is None
    assert paper._cells(line)[3:5] == ["does not fit", "does not fit"]


def test_published_figures_agree_with_one_another() -> None:
    # Table 2 and figure 7 give the same configuration, in seconds and as MFU.
    seconds = published.seconds_of(0.76, 512 * 2048)
    assert seconds == pytest.approx(published.HIGH_THROUGHPUT_PREFILL, rel=0.01)
    # As do table 2 and appendix C for decoding, a token.
    token = published.HIGH_THROUGHPUT_DECODE / published.DECODED_TOKENS
    assert token == pytest.approx(published.DECODE_MS["bf16", 512] * 1e-3, rel=0.03)


def test_formulas_reach_the_published_figures() -> None:
    for name, ours in paper_forms.volumes(paper_forms.TOKENS).items():
        assert ours == pytest.approx(published.VOLUMES[name], rel=2e-3)
    for (attention, batch), theirs in published.LONGEST_CONTEXT.items():
        assert paper_forms.longest_context(attention, batch) == pytest.approx(theirs, rel=0.03)


def test_the_planner_concludes_as_the_paper_does() -> None:
    for _, words, found in paper_forms.conclusions():
        feedforward, _, attention = words.partition(", attention over ")
        kind = {"2D weight-stationary": "WS 2D", "weight-gathered XYZ": "WG XYZ"}[feedforward]
        assert found.best.feedforward.startswith(kind)
        assert found.best.attention.startswith(attention)
    order = [layout for _, layout in paper_forms.prefill_crossovers()]
    assert order[0].startswith("WS 2D")
    assert order[-1] == "WG XYZ"
    weights_move = [layout.startswith("WG") for layout in order]
    assert weights_move == sorted(weights_move)


def test_regret_is_of_the_chosen_against_the_best() -> None:
    point = regret.points()[0]
    options = point.candidates()
    assert options[0] == point.plan().best
    rows = {
        point.task(option): fake(*point.task(option), 1.2 - 0.1 * place)
        for place, option in enumerate(options)
    }
    (found,) = regret.regrets(rows)
    assert found.best_seconds == min(row.layers_seconds for row in rows.values())
    assert found.regret == pytest.approx(1.2 / found.best_seconds - 1)
    assert found.regret > regret.MOST
    text = regret.print_regrets([found])
    assert text.startswith("0 of 1 points within 5%")
    assert str(point) in text


def test_the_grid_is_as_wide_as_the_paper() -> None:
    points = regret.points()
    assert len(set(points)) == len(points) >= 40
    assert {each.model for each in points} == {"palm-8b", "palm-62b", "palm-540b", PAPER_540B}
    assert {each.kind for each in points} == {"decode", "prefill"}
    assert {each.weights for each in points} == {"bf16", "int8"}
    assert {each.chips for each in points} == {8, 16, 32, 64, 128, 256}
    batches = {each.batch for each in points}
    assert (min(batches), max(batches)) == (1, 1024)


def test_a_workload_is_a_prefill_and_steps_of_decoding() -> None:
    workload = end_to_end.workloads()[0]
    seconds = {"prefill": 3.0, "decode": 0.5, "sample": 0.01}
    rows = {task: fake(*task, 0.4, seconds[task[0].kind]) for task in workload.tasks}
    steps = workload.tokens_out
    expected = 3.0 + 0.5 * (steps - 1) + 0.01 * steps
    assert workload.seconds(rows, "blocking") == pytest.approx(expected)
    refused = StepRow(workload.sample, paper_rows.SLICE, refused="too large")
    assert workload.seconds(rows | {workload.tasks[-1]: refused}, "best") is None


@pytest.mark.tpu
def test_the_analytical_column_has_no_overlap() -> None:
    phase = Phase("palm-540b", "decode", 64, 2048, "int8")
    found = paper.analytical(phase, paper_rows.SLICE)
    weights = PALM_540B.layer_parameters / published.CHIPS
    assert found.seconds > weights / TPU_V4.hbm_bandwidth
    assert found.overlap == "none"


def test_a_mistyped_argument_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["paper", "--ful1"]) == 2
    assert "--ful1" in capsys.readouterr().err
