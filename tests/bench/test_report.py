"""What the tables say of rows with known numbers."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from bench.einsum_suite.measure import Row
from bench.einsum_suite.report import (
    choices_legend,
    comparisons,
    comparisons_legend,
    print_choices,
    print_comparisons,
    print_conclusion,
    print_short,
    print_summary,
    save_json,
    short_legend,
)


def row(schedule: str, total: float, exposed: float = 0, case: str = "einsum", **more) -> Row:
    values = {
        "program": schedule,
        "communication_seconds": 40e-6,
        "compute_seconds": (total - exposed) * 1e-6,
    } | more
    return Row(
        case,
        more.pop("rows", 512),
        "bf16",
        "v4:4x4x4",
        schedule,
        total_seconds=total * 1e-6,
        exposed_seconds=exposed * 1e-6,
        **{key: value for key, value in values.items() if key != "rows"},
    )


ROWS = [
    row("blocking", 140, 40, compile_seconds=3.0),
    row("auto", 112, 4, program="latency", modelled_seconds=100e-6),
    row("latency", 112, 4, program="latency"),
    row("chunked 2 over 'm', latency", 110, 0),
    Row("einsum", 512, "bf16", "v4:4x4x4", "bidirectional", refused="odd"),
]


def test_comparison() -> None:
    (found,) = comparisons(ROWS)
    assert found.chosen == "latency"
    assert found.best.schedule == "chunked 2 over 'm', latency"
    assert found.baseline.schedule == "blocking"
    assert found.limit_seconds == pytest.approx(100e-6)
    assert found.distance == pytest.approx(0.12)
    assert found.speedup == pytest.approx(1.25)
    assert found.regret == pytest.approx(112 / 110 - 1)
    assert found.hidden_fraction == pytest.approx(0.9)
    assert found.is_worthwhile


def test_auto_in_a_plain_jit_stands_beside_it() -> None:
    plain = row("auto in jit", 126, 14)
    (found,) = comparisons([*ROWS, plain])
    assert found.in_jit == plain
    # What auto comes to names the best better than auto does.
    (best,) = comparisons([*ROWS[:3], row("auto in jit", 112, 4, program="latency")])
    assert best.best.schedule == "latency"
    head, line = print_comparisons([found]).splitlines()
    at = head.index("in jit")
    assert line[: at + 6].endswith(" 126.0")
    assert "slowest in a plain jit: 0.900 of it (einsum, 512 rows, bf16)" in print_summary(
        [*ROWS, plain]
    )


def test_communication_can_be_the_limit() -> None:
    rows = [row("blocking", 140, 100, communication_seconds=100e-6), row("auto", 105, 65)]
    (found,) = comparisons(rows)
    assert found.limit_seconds == pytest.approx(100e-6)
    assert not found.is_worthwhile


def test_what_is_not_ours_is_a_baseline_and_no_choice() -> None:
    rows = [row("blocking", 140, 40), row("ours", 120), row("compiler xyz", 100)]
    (found,) = comparisons(rows)
    assert found.auto.schedule == found.best.schedule == "ours"
    assert found.baseline.schedule == "compiler xyz"
    assert found.against_baseline == pytest.approx(1.2)
    assert "1.167 times faster than blocking, 0.833 than the best" in print_summary(rows)


def test_plain_jits_with_options_are_baselines_and_no_choices() -> None:
    by_options, offloaded = row("blocking by options", 120), row("blocking on SparseCores", 105)
    (found,) = comparisons([*ROWS, by_options, offloaded])
    assert found.baseline == offloaded
    assert found.against_baseline == pytest.approx(112 / 105)
    assert found.best.schedule != "blocking on SparseCores"
    summary = print_summary([*ROWS, by_options, offloaded])
    assert "1.067 of it (einsum, 512 rows, bf16, blocking on SparseCores)" in summary
    head, line = print_comparisons([found]).splitlines()
    assert line[: head.index("best jit") + 8].endswith(" 105.0")


def test_tables() -> None:
    found = comparisons(ROWS)
    for text in (print_comparisons(found), print_short(found)):
        head, line = text.splitlines()
        assert "predicted" in head
        assert "+12.0%" in line
        assert "1.250" in line
    summary = print_summary(ROWS)
    assert "slowest against the best plain jit: 0.800" in summary
    assert "worst regret: 1.8% (einsum, 512 rows, bf16, best chunked 2" in summary
    assert "speedup 1.250 in the geometric mean (limit 1.400), 90.0% of communication" in summary
    assert "longest compile of any (measured): 3.0 s (einsum, 512 bf16, blocking)" in summary
    assert "off by 10.7% in the median" in summary


def test_every_column_has_a_legend_and_tables_fit_a_terminal() -> None:
    named = dataclasses.replace(ROWS[1], case="weights gathered xyz", total_seconds=27414.1e-6)
    rows = [dataclasses.replace(r, case=named.case, rows=8192) for r in (ROWS[0], named, ROWS[3])]
    compared = comparisons(rows)
    pairs = (
        (print_comparisons(compared), comparisons_legend(compared)),
        (print_choices(compared), choices_legend()),
        (print_short(compared), short_legend(compared)),
    )
    for text, legend in pairs:
        for column in re.split(r"  +", text.splitlines()[0])[2:]:
            assert f"{column}: " in legend.replace("\n  ", " ")
        assert max(map(len, [*text.splitlines(), *legend.splitlines()])) <= 120
    assert 'weights gathered xyz: all_gather_einsum("me,ef->mf"), f over xyz' in pairs[0][1]
    assert print_conclusion(compared).startswith(
        "So auto is predicted faster than blocking in 0 of 1"
    )
    assert print_conclusion([]).startswith("Nothing could be compared")


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    save_json(str(path), rows=ROWS)
    document = json.loads(path.read_text())
    assert document["versions"]["jax"]
    assert len(document["rows"]) == len(ROWS)
    assert {each["target"] for each in document["rows"]} == {"v4:4x4x4"}
    assert {each["kind"] for each in document["rows"]} == {"predicted"}
