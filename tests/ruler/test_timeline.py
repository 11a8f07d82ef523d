"""A timeline as a table, a picture and a trace."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from collective_einsum.ruler.replay.events import Event
from collective_einsum.ruler.replay.timeline import Timeline

US = 1e-6
TIMELINE = Timeline(
    name="jit_f",
    chip="TPU v4",
    total_seconds=100 * US,
    hbm_bytes=6e6,
    hbm_bandwidth=1.2e12,
    peak_flops=275e12,
    link_bandwidth={"x+": 1e11, "x-": 1e11},
    events=(
        Event("compute", "fusion.1", 0, 40 * US, "dot", "jit(f)/dot", 6e6, flops=5.5e9),
        Event("x+", "permute.1", 0, 30 * US, "permute", bytes=1e6, arrival=31 * US),
        Event("x+", "permute.2", 10 * US, 50 * US, "permute", bytes=2e6, arrival=51 * US),
        Event("dma", "copy.1", 20 * US, 60 * US, "copy", bytes=3e6),
        Event("stall", "permute.2", 40 * US, 51 * US, "collective"),
        Event("stall", "copy.1", 51 * US, 60 * US, "copy"),
        Event("compute", "fusion.2", 60 * US, 100 * US, "compute"),
    ),
    notes=("one assumption",),
)


def test_sums() -> None:
    assert TIMELINE.compute_seconds == pytest.approx(80 * US)
    assert TIMELINE.dot_seconds == pytest.approx(40 * US)
    assert TIMELINE.communication_seconds == pytest.approx(51 * US)
    assert TIMELINE.exposed_by_op == {"permute.2": pytest.approx(11 * US)}
    assert TIMELINE.dma_stall_by_op == {"copy.1": pytest.approx(9 * US)}
    assert TIMELINE.hidden_fraction == pytest.approx(40 / 51)
    assert TIMELINE.link_bytes == {"x+": 3e6, "x-": 0}
    assert TIMELINE.link_busy_seconds == {"x+": pytest.approx(50 * US), "x-": 0}
    assert TIMELINE.dma_bytes == 3e6
    assert TIMELINE.mfu == pytest.approx(0.2)
    assert TIMELINE.permutes_in_flight_during_dots() == {
        "permute.1": pytest.approx(30 * US),
        "permute.2": pytest.approx(30 * US),
    }


def test_printed() -> None:
    text = str(TIMELINE)
    lines = {line.strip().split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["total"][1:] == ["100.00", "100.0%"]
    assert lines["exposed"][1:] == ["11.00", "11.0%"]
    assert lines["x+"][1:] == ["3.000", "50.00", "50.0%", "30.0%"]
    assert "MFU 20.0%" in text
    assert "predicted" in text
    assert "note: one assumption" in text


def test_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    TIMELINE.save_trace(path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert list(names.values()) == ["compute", "stall", "x+", "x+ (2)", "x-", "dma"]
    complete = [e for e in events if e["ph"] == "X"]
    assert len(complete) == len(TIMELINE.events)
    (dot,) = (e for e in complete if e["name"] == "fusion.1")
    assert (names[dot["tid"]], dot["ts"], dot["dur"]) == ("compute", 0, pytest.approx(40))
    assert dot["args"]["op_name"] == "jit(f)/dot"
    ends: dict[int, float] = {}
    for event in complete:
        assert event["ts"] >= ends.get(event["tid"], 0)
        ends[event["tid"]] = event["ts"] + event["dur"]


def test_png(tmp_path: Path) -> None:
    path = tmp_path / "timeline.png"
    TIMELINE.save_png(path)
    image = np.rint(imread(path)[..., :3] * 255).astype(int)
    for colour in [(0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0x99, 0x99, 0x99), (0xCC, 0x79, 0xA7)]:
        assert (image == colour).all(axis=-1).sum() > 100


def test_png_names_what_it_shows_and_leaves_empty_rows_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    TIMELINE.save_png(tmp_path / "x.png", title="gather x, W_out, 512 rows, auto", layers=4)
    (axes,) = figures[0].axes
    assert axes.get_title().startswith("gather x, W_out, 512 rows, auto on TPU v4\n100.0 us")
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "compute",
        "stall",
        "x+",
        "dma",
    ]
    marks = [text.get_text() for text in axes.texts]
    assert marks == ["layer 0", "layer 1", "layer 2", "layer 3"]
