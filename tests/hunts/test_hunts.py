"""Each hunt for a few cases; `run` goes on for longer."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import pytest

from . import run
from .run import NAMES

CASES = 5
_MARKS = {"plans": pytest.mark.tpu, "caches": pytest.mark.slow, "defaults": pytest.mark.slow}


@pytest.mark.parametrize("seed", range(CASES))
@pytest.mark.parametrize("name", [pytest.param(name, marks=_MARKS.get(name, ())) for name in NAMES])
def test_holds(name: str, seed: int) -> None:
    importlib.import_module(f"{__package__}.{name}").case(seed)


@pytest.mark.parametrize(("plain", "faults", "xla"), [(0, [8, 9], []), (-6, [9], [8])])
def test_a_hunt_outlives_an_abort(
    monkeypatch: pytest.MonkeyPatch, plain: int, faults: list[int], xla: list[int]
) -> None:
    """An abort is a fault, unless the same program without this library aborts too."""

    def process(name: str, *options: str) -> int:
        assert name == "einsums"
        if options == ("--plain", "8"):
            return plain
        given = dict(zip(options[::2], options[1::2], strict=True))
        if given["--seed"] == "7":
            Path(given["--progress"]).write_text("7 ok\n8 ", encoding="utf-8")
            return -6
        with Path(given["--progress"]).open("a", encoding="utf-8") as lines:
            lines.write(f"{given['--seed']} fault\n10 ok\n")
        time.sleep(float(given["--seconds"]))
        return 0

    monkeypatch.setattr(run, "_process", process)
    assert run.hunt("einsums", 0.2, 7) == (4, faults, xla)
