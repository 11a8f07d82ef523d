"""The commands of README and of docs/ do what the pages say, as the pages write them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from bench import command_line
from collective_einsum.ruler.replay import WIDTH
from layouts.planning.search import ATTENTIONS, FEEDFORWARDS
from tests.users import run_as_user

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = "\n".join(
    [README, *(p.read_text(encoding="utf-8") for p in (ROOT / "docs").glob("*.md"))]
)
# Two spaces or more stand between columns, one within a heading.
GAP = re.compile(r" {2,}")


def run(line: str, folder: Path) -> str:
    """What a command prints, in a folder that is empty; it must succeed."""
    words = shlex.split(line)
    assert words[0] == "python"
    process = run_as_user([sys.executable, *words[1:]], folder)
    assert process.returncode == 0, process.stderr
    return process.stdout


def check_every_column_is_explained(printed: str, heading: str) -> None:
    """Tables whose first column starts with `heading` have a legend below, and fit a terminal."""
    lines = printed.splitlines()
    assert max(map(len, lines)) <= WIDTH, max(lines, key=len)
    heads = [place for place, line in enumerate(lines) if line.startswith(heading)]
    assert heads, printed
    for place in heads:
        below = " ".join(line.strip() for line in lines[place + 1 :])
        for column in GAP.split(lines[place].strip())[1:]:
            assert f"{column}: " in below, column


def test_readme_has_three_commands() -> None:
    """Two to try it, and one for the reference, which CI builds with a word more."""
    lines = re.findall(r"python -m pip install -e '\.\[\w+\]' && (python -m [^\n`]*)", README)
    assert lines == ["python -m bench", "python -m pytest", "python -m sphinx -W docs build/docs"]
    assert len(re.findall(r"python -m (?!pip|layouts)", README)) == len(lines)
    assert "python -m sphinx -W --keep-going -q docs" in (ROOT / ".ci/run").read_text()
    assert "python -m pytest -n 2\n" in (ROOT / ".ci/run").read_text()


@pytest.mark.tpu
def test_bench(tmp_path: Path) -> None:
    printed = run("python -m bench", tmp_path)
    check_every_column_is_explained(printed, "us a layer, predicted")
    assert "112 checks: none is wrong." in printed
    assert "Columns: the schedule; -: the function refuses it" in printed
    for case in ("gather x, W_out", "feedforward"):
        assert re.search(rf"\n  {case}: ", printed), "the einsum of every case is shown"
    assert re.search(r"\nSo auto is predicted faster than blocking in \d+ of 15 rows", printed)
    assert re.search(r"\ndone in \d+ s \(measured\)\n$", printed)


@pytest.mark.slow
def test_layers_on_emulated_devices(tmp_path: Path) -> None:
    line = "python -m bench layers --target cpu:8"
    assert f"\n{line}\n" in DOCUMENTS
    printed = run(line, tmp_path)
    check_every_column_is_explained(printed, "measured")
    title, _, *rows = printed.strip().partition("\n\n")[0].splitlines()
    assert title.startswith("a mesh 2x2x2 of cpu")
    for name in (*FEEDFORWARDS, *ATTENTIONS):
        assert any(name in row for row in rows), printed
    assert len(rows) == len(FEEDFORWARDS) + len(ATTENTIONS) - 1
    assert printed.endswith("pairs of layouts: all are right.\n")
    assert "WRONG" not in printed


@pytest.mark.tpu
def test_layers_of_one_phase(tmp_path: Path) -> None:
    line = (
        'python -m bench layers --model "palm-540b padded" --phase decode --batch 64 '
        '--feedforward "WS 2D" --schedules blocking'
    )
    assert f"\n{line}\n" in DOCUMENTS
    printed = run(line, tmp_path)
    check_every_column_is_explained(printed, "predicted, us a layer")
    assert re.search(r"\ndecode 64 x 2048 bf16 blocking waits for ", printed)
    last = "So decode 64 x 2048 bf16 is predicted fastest with WS 2D, batch xyz, blocking: "
    assert printed.strip().splitlines()[-1].startswith(last)


@pytest.mark.tpu
def test_timeline(tmp_path: Path) -> None:
    line = 'python -m bench timeline --case "gather x" --rows 2048 --png timeline.png --trace trace.json'
    assert f"\n{line}\n" in DOCUMENTS
    printed = run(line, tmp_path)
    assert max(map(len, printed.splitlines())) <= WIDTH
    legends = re.findall(r"^Columns.*?: (.*?\.)$", printed, re.DOTALL | re.MULTILINE)
    text = "; ".join(legends).replace("\n  ", " ")
    for column in ("total", "compute", "dots", "communication", "exposed", "busy us", "share"):
        assert f"{column}: " in text, column
    assert re.search(r"\nSo a layer is predicted to take \d+\.\d us; ", printed)
    for name in ("timeline.png", "trace.json"):
        assert (tmp_path / name).stat().st_size > 1000
        assert f" written to {name}\n" in printed


def test_every_command_of_the_pages_is_one() -> None:
    """Its words are understood; what takes longer than a minute is not run here."""
    lines = re.findall(r"python -m bench[^\n`]*", DOCUMENTS)
    assert len(lines) > 5
    for line in lines:
        options = command_line.parser().parse_args(shlex.split(line)[3:])
        assert callable(options.run)
