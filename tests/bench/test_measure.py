"""Rows, and the cache that they come from."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import pytest

import collective_einsum as ce
from bench.einsum_suite import measure
from bench.einsum_suite.cases import BY_OPTIONS, Case, mesh_of
from bench.einsum_suite.measure import Row, Task, measure_all
from collective_einsum.ruler.compile import target
from collective_einsum.ruler.compile.program_cache import Cache
from collective_einsum.ruler.replay import replay

TARGET = "v4:4x4x4"
CASE = Case("gather x, W_out", 64)


@pytest.mark.tpu
def test_a_row(tmp_path: Path) -> None:
    """Numbers of blocking: what the compiler's own all-gather and one dot cost."""
    row = measure.measure(Task(CASE, "blocking", TARGET), tmp_path)
    assert (row.case, row.rows, row.weights, row.refused) == ("gather x, W_out", 64, "bf16", "")
    assert row.total_seconds == pytest.approx(row.compute_seconds + row.exposed_seconds, rel=0.02)
    assert row.exposed_seconds == pytest.approx(row.communication_seconds)
    assert row.hidden_fraction == pytest.approx(0)
    # Streaming [4608, 4608] in bf16 from HBM takes 35 us at least.
    assert 35e-6 < row.dot_seconds < 80e-6
    # 3/4 of [64, 4608] in bf16, half of it either way.
    gathered = 64 * 4608 * 2
    assert row.link_bytes["x+"] == row.link_bytes["x-"] == pytest.approx(gathered * 3 / 8)
    assert row.link_bytes["y+"] == 0
    assert row.modelled_seconds == pytest.approx(row.total_seconds, rel=0.3)


@pytest.mark.tpu
def test_compiles_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task(CASE, "blocking", TARGET)
    first = measure.measure(task, tmp_path)

    def fail(*_: object) -> None:
        raise RuntimeError("compiled again")

    monkeypatch.setattr(measure, "_compile", fail)
    assert measure.measure(task, tmp_path) == first
    with pytest.raises(RuntimeError, match="compiled again"):
        measure.measure(Task(CASE, "unidirectional", TARGET), tmp_path)


@pytest.mark.tpu
def test_refused(tmp_path: Path) -> None:
    task = Task(CASE, ce.Schedule("chunked", chunks=2, label="f"), TARGET)
    row = measure.measure(task, tmp_path)
    assert "'f' is gathered" in row.refused
    assert row.total_seconds == 0


@pytest.mark.tpu
def test_in_other_processes(tmp_path: Path) -> None:
    tasks = [Task(CASE, schedule, TARGET) for schedule in ("blocking", "nonsense")]
    rows = dict(measure_all(tasks, tmp_path, workers=1))
    assert rows[0] == measure.measure(tasks[0], tmp_path)
    assert isinstance(rows[1], Row)
    assert "nonsense" in rows[1].refused


def test_cache(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "new")
    assert cache.recall("name") is None
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    program = cache.compiled("key", lowered.compile, "name")
    assert "HloModule" in program.text
    assert cache.recall("name") == ("key", program)
    assert cache.load("key") == program
    assert cache.load("other") is None
    assert Cache(tmp_path / "new").recall("name") == ("key", program)

    def fail() -> jax.stages.Compiled:
        raise AssertionError("compiled again")

    assert cache.compiled("key", fail, "another") == program
    assert cache.recall("another") == ("key", program)


@pytest.mark.tpu
def test_int8_weights_are_charged_the_bundles_that_they_issue(tmp_path: Path) -> None:
    case = Case("gather x, W_out", 64, "int8")
    tasks = [Task(CASE, "blocking", TARGET), Task(case, "blocking", TARGET)]
    wide, narrow = (row for _, row in sorted(measure_all(tasks, tmp_path, workers=1)))
    assert not wide.program.endswith("bundles")
    program = Cache(tmp_path).load(narrow.program)
    assert program is not None
    estimated = re.sub(r'"issued_(bundles|windows)":"\d+",?', "", program.text)
    mesh = mesh_of(target(TARGET))
    by_estimates = replay(estimated, mesh).dot_seconds / case.layers
    # A weight of a scanned stack is widened on the vector units, and takes longer than estimated.
    assert by_estimates < 0.9 * narrow.dot_seconds
    assert replay(program.text, mesh).dot_seconds / case.layers == narrow.dot_seconds


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("slice_", "rows"), [("v4:4x4x4", 512), ("v5e:4x4", 512), ("v6e:4x4", 64), ("tpu7x:4x4x4", 64)]
)
def test_rings_over_int8_weights_are_chosen_where_they_are_faster(
    tmp_path: Path, slice_: str, rows: int
) -> None:
    """Their weights are copied, on most chips while the first hop is under way."""
    case = Case("gather x, W_out", rows, "int8")
    tasks = [Task(case, schedule, slice_) for schedule in ("latency", BY_OPTIONS, "auto")]
    ring, blocking, auto = (row for _, row in sorted(measure_all(tasks, tmp_path, workers=1)))
    assert ring.modelled_seconds == pytest.approx(ring.total_seconds, rel=0.15)
    assert auto.total_seconds == min(ring.total_seconds, blocking.total_seconds)
    assert (auto.total_seconds == ring.total_seconds) == (slice_ != "v6e:4x4")
