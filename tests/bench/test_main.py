"""The command line."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import command_line, correctness
from collective_einsum.ruler.replay import WIDTH
from tests.users import run_as_user

pytestmark = pytest.mark.tpu

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench` with arguments, in a process whose environment is a user's."""
    return run_as_user([sys.executable, "-m", "bench", *arguments], ROOT)


def test_help() -> None:
    found = run("--help")
    assert found.returncode == 0
    for word in ("collectives", "timeline", "--json", "predicted", "measured"):
        assert word in found.stdout


def test_the_attached_device_is_asked_for_whatever_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for platforms in (None, "cpu"):
        if platforms is None:
            monkeypatch.delenv("JAX_PLATFORMS")
        else:
            monkeypatch.setenv("JAX_PLATFORMS", platforms)
        for word, words in (("layers", "jax sees only CPUs"), ("calibrate", "of platform 'cpu'")):
            assert command.main([word, "--target", "attached"]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert words in line


def test_collectives_and_timeline(tmp_path: Path) -> None:
    """One case, in a process without any of the tests' environment."""
    cache, rows, png, trace = (str(tmp_path / n) for n in ("c", "rows.json", "t.png", "t.json"))
    case = ("--rows", "64", "--cache", cache)
    found = run(*("collectives", "--only", "gather x", "--workers", "1", "--json", rows), *case)
    assert found.returncode == 0, found.stderr
    assert "gather x, W_out, bf16" in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= WIDTH
    assert "slowest against the best plain jit" in found.stdout
    assert {row["schedule"] for row in json.loads(Path(rows).read_text())["rows"]} >= {
        "auto",
        "blocking",
        "latency",
    }
    found = run(
        *("timeline", "--case", "gather x", "--schedule", "latency"),
        *("--png", png, "--trace", trace, *case),
    )
    assert found.returncode == 0, found.stderr
    assert "replayed (predicted)" in found.stdout
    assert "scheduler's cycles" in found.stdout
    assert Path(png).read_bytes().startswith(b"\x89PNG")
    assert json.loads(Path(trace).read_text())["traceEvents"]


def test_without_libtpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The first half is done, and what is missing is said."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else find(name, *a)
    )
    outcome = correctness.Outcome("all_gather", "auto", 0.0, 64)
    every = [
        correctness.Outcome("all_gather", schedule, 0.0, 64) for schedule in correctness.SCHEDULES
    ]
    monkeypatch.setattr(correctness, "run", lambda _: iter(every))
    path = tmp_path / "out.json"
    assert command.main(["--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "Is it right?" in printed
    assert "needs libtpu" in printed
    assert "pip install -e '.[bench]'" in printed
    assert json.loads(path.read_text())["checks"][0]["sent"] == outcome.sent


def test_a_wrong_result_is_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    wrong = [
        correctness.Outcome("all_gather", schedule, 1.0, 64) for schedule in correctness.SCHEDULES
    ]
    monkeypatch.setattr(correctness, "run", lambda _: iter(wrong))
    assert command.main([]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_errors_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["collectives", "--only", "nothing"]) == 2
    assert "no case whose name contains 'nothing'" in capsys.readouterr().err
    assert command.main(["timeline", "--case", "nothing"]) == 2
    assert "none of 'gather yz, W_in'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("colectives", "did you mean 'collectives'?"),
        ("collectives --weights fp8", "write bf16, int8 or bf16,int8"),
        ("collectives --rows -5", "'-5' is no list of whole numbers of at least 1"),
        ("collectives --rows 0", "'0' is no list of whole numbers of at least 1"),
        ("collectives --rows 1,a", "'1,a' is no list of whole numbers of at least 1"),
        ("collectives --target cpu:8", "name one, such as v4:4x4x4"),
        ("collectives --workers 0", "'0' is no whole number of at least 1"),
        ("timeline --case x --weights fp8", "invalid choice: 'fp8'"),
        ("timeline --case feedforward --weights int8", "bf16 weights only"),
        ("timeline --case x --png t.foo", "end its name in .png"),
        ("layers --target cpu:3", "a power of two, such as cpu:4"),
        ("layers --target cpu:8 --batch 7", "--batch has no effect here"),
        ("layers --batch 7", "add --phase decode or --phase prefill"),
        ("layers --phase decode --batch -7", "'-7' is no whole number of at least 1"),
        ("--json /nowhere/rows.json", "there is no folder '/nowhere'"),
        ("collectives --cache pyproject.toml/cache", "is a file; name a folder"),
        ("paper --out pyproject.toml", "is a file; name a folder"),
        ("paper --json rows.json", "--json"),
        ("--json rows.json paper", "paper writes report.json into --out DIR"),
    ],
)
def test_wrong_arguments_end_at_once_in_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(correctness, "run", lambda _: pytest.fail("something ran"))
    assert command.main(shlex.split(arguments)) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out


def test_flags_of_a_file(tmp_path: Path) -> None:
    """absl's flags are known, before and after the command."""
    path = tmp_path / "flags"
    path.write_text("--rows\n64\n--verbosity=1\n")
    options = command_line.parser().parse_args(["collectives", f"--flagfile={path}"])
    assert options.rows == (64,)


def interrupt(command: list[str], ready: str) -> None:
    """Sends Ctrl-C once the first line of a command says `ready`; it must end as it should, in time."""
    # As at a terminal: a process in the background may ignore the signal, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            assert process.stderr is not None
            assert ready in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert time.monotonic() - start < 5
    assert process.returncode == 130
    assert "run the command again to go on" in errors


def test_ctrl_c_is_answered_while_workers_compile(tmp_path: Path) -> None:
    """After the first progress line; workers compile the next programs by then."""
    line = [sys.executable, "-m", "bench", "collectives", "--rows", "512", "--cache", str(tmp_path)]
    interrupt(line, "compiled 1 of")


def test_ctrl_c_is_answered_while_the_main_thread_is_in_a_compiler() -> None:
    """A hash of a minute stands for it: one call that returns to Python at its end alone."""
    code = (
        "import hashlib, sys, threading\n"
        "from bench import interrupts\n"
        "interrupts.answer_interrupts()\n"
        # Said while the main thread hashes, which lets other threads run.
        "said = {'file': sys.stderr, 'flush': True}\n"
        "threading.Timer(1, print, ['started'], said).start()\n"
        "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)\n"
    )
    interrupt([sys.executable, "-c", code], "started\n")
