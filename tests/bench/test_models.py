"""`python -m bench models`: what the planner chooses, and the table."""

import dataclasses
import json
from pathlib import Path

import pytest

from bench import __main__ as command
from bench.decoder_suite.open_models import ModelRow, choose, print_rows
from bench.decoder_suite.steps import step
from collective_einsum.ruler.replay import WIDTH


@pytest.mark.tpu
def test_weights_are_int8_where_bf16_does_not_fit() -> None:
    assert choose("llama-3.1-70b", "v5e:4x4").weights == "bf16"
    quantized = choose("llama-3.1-405b", "v6e:4x4")
    assert quantized.weights == "int8"
    assert quantized.phase is not None
    assert quantized.phase.sides == tuple(quantized.plan.best.sizes.values())
    too_large = choose("llama-3.1-405b", "v5e:4x4")
    assert too_large.phase is None
    row = ModelRow(
        too_large.model, too_large.target, too_large.weights, refused=too_large.plan.nearest
    )
    said = print_rows([row])
    assert "llama-3.1-405b on v5e:4x4, int8: no layout" in said
    assert "of the 16.0 GiB of a TPU v5e" in " ".join(said.split())


def test_the_table_has_a_row_for_each_step() -> None:
    row = ModelRow(
        "qwen3-8b", "v5e:4x4", "bf16", "WS 2D, heads, 4x4x1", 0.003, 0.004, 0.005, 0.031, 2**31
    )
    lines = print_rows([row, dataclasses.replace(row, target="v6e:4x4")]).splitlines()
    assert lines[0].split() == [
        *("decode", "32", "x", "4096", "slice", "weights", "layouts"),
        *("limit", "ms", "model", "ms", "replay", "ms", "MFU", "GiB"),
    ]
    assert lines[1].split()[-5:] == ["3.00", "4.00", "5.00", "3.1%", "2.0"]
    assert len([line for line in lines if line.startswith("qwen3-8b")]) == 2


@pytest.mark.tpu
def test_a_small_model_is_planned_compiled_and_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.json"
    sizes = ["--batch", "4", "--length", "32", "--cache", str(tmp_path / "cache")]
    where = ["--model", "tiny-grouped", "--target", "v5e:2x2"]
    assert command.main(["models", *where, *sizes, "--json", str(rows)]) == 0
    said = capsys.readouterr().out
    assert "decode 4 x 32 " in said
    assert "predicted by a replay" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= WIDTH
    (row,) = json.loads(rows.read_text(encoding="utf-8"))["rows"]
    assert 0 < row["limit_seconds"] < row["model_seconds"]
    assert row["limit_seconds"] < row["replay_seconds"]
    assert row["chip_bytes"] > 0


@pytest.mark.tpu
def test_int8_is_replayed_by_the_bundles_that_it_issues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--batch", "4", "--length", "32", "--model", "tiny-grouped", "--target", "v5e:2x2"]
    seconds = []
    for place, more in enumerate(([], ["--int8_cache"], ["--int8_cache", "--unrolled"])):
        rows = tmp_path / f"{place}.json"
        narrow = ["--weights", "int8", *more, "--json", str(rows)]
        assert command.main(["models", *sizes, *narrow, "--cache", str(tmp_path / "cache")]) == 0
        (row,) = json.loads(rows.read_text(encoding="utf-8"))["rows"]
        assert row["weights"] == "int8"
        seconds.append(row["replay_seconds"])
    assert len(set(seconds)) == len(seconds)
    assert "by the bundles that it issues" in " ".join(capsys.readouterr().out.split())
    phase = choose("tiny-grouped", "v5e:2x2", 4, 32, "int8").phase
    assert phase is not None
    estimated = step(phase, "v5e:2x2", tmp_path / "estimated").step_seconds
    assert 0 < estimated != seconds[0]


@pytest.mark.tpu
def test_another_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--model", "llama-3.1-70"], "did you mean 'llama-3.1-70b'?"),
        (["--target", "cpu:8"], "--target cpu:8 is no TPU slice"),
    ):
        assert command.main(["models", *arguments]) == 2
        assert words in capsys.readouterr().err
