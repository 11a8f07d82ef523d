"""The commands `python -m layouts` of README and of docs/ run as the pages write them."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from layouts.__main__ import main
from tests.users import run_as_user

from . import tiny_checkpoint

ROOT = Path(__file__).parent.parent.parent
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(r"^python -m layouts .*", re.MULTILINE)
LINES = tuple(
    dict.fromkeys(
        line for page in PAGES for line in COMMAND.findall(page.read_text(encoding="utf-8"))
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a tiny checkpoint in the place of the one that the pages name, and a text."""
    path = tmp_path_factory.mktemp("pages")
    tiny_checkpoint.write(path / "SmolLM2-135M-Instruct")
    (path / "text.txt").write_text("It was a bright cold day in April. " * 20)
    return path


def test_pages_have_commands() -> None:
    readme = COMMAND.findall(PAGES[0].read_text(encoding="utf-8"))
    assert [shlex.split(line)[3] for line in readme] == ["generate", "score", "plan"]
    assert len(LINES) >= 8


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.tpu] * ("--replay" in line)) for line in LINES]
)
def test_command(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    kind, *words = shlex.split(line)[3:]
    status = main([kind, *words])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    begins = {"generate": "", "score": "perplexity ", "plan": "padded so that it divides"}[kind]
    if "--continuation" in words:
        begins = "log-likelihood  tokens  continuation\n"
    if "--model" in words:
        begins = "palm-540b, prefill, on TPU v4: ranked by latency"
    if "--replay" in words:
        rounded = ", int8 activations" if "--int8_activations" in words else ""
        phase = "prefill" if "--phase" in words else "decode"
        begins = f"llama-3.1-70b{rounded}, {phase}, on TPU v5e, scanned layers: ranked by latency"
    assert printed.out.startswith(begins)
    assert len(printed.out) > 2


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """Where jax has not started: emulated devices are made, and an error is one line."""
    line = 'python -m layouts generate --prompt "Hello" --tokens 8 --emulate 2,2,2'
    assert line in LINES
    words = [sys.executable, *shlex.split(line)[1:]]
    process = run_as_user(words, tmp_path)
    assert process.returncode == 0, process.stderr
    assert "random, 0.2 million parameters, on 2x2x2 cpu\n" in process.stderr
    assert process.stdout.endswith("\n")
    wrong = run_as_user([*words, "--mesh", "2,2,2"], tmp_path)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == (
        "python -m layouts generate: --emulate and --mesh both give a mesh; leave one of them out\n"
    )
