"""Two timelines compared, on schedules timed by hand."""

from __future__ import annotations

import itertools
import random
import typing
from pathlib import Path

import pytest

from collective_einsum.ruler import compare
from collective_einsum.ruler.replay import WIDTH
from collective_einsum.ruler.replay.timeline import Timeline

from .schedules import FORWARD, GROUPS, ON_CHIP, US, done, dot, permute, run


def at(line: int) -> str:
    return f', metadata={{op_name="f" source_file="/home/you/model.py" source_line={line}}}'


GATHER = f"%g = s8[400]{{0:S(1)}} all-gather(%p), {GROUPS}, dimensions={{0}}"
COPY = "%c = (s8[1000]{0:S(1)}, s8[1000]{0}, u32[]{:S(2)}) copy-start(%w)"
COPIED = "%e = s8[1000]{0:S(1)} copy-done(%c)"


def before() -> Timeline:
    """A gather of 152 us that nothing hides, a dot of 60, a sum of 30."""
    other = f'%n = {ON_CHIP} negate(%p), backend_config={{"estimated_cycles":"30"}}'
    return run("\n".join([GATHER + at(3), dot("d", 60) + at(4), other]))


def after() -> Timeline:
    """A permute of 101 us behind a dot of 70 that moved to line 5, then a copy of 100."""
    return run(
        "\n".join([permute("a", FORWARD) + at(3), dot("d", 70) + at(5), done("a"), COPY, COPIED])
    )


def test_groups_of_line_and_kind() -> None:
    comparison = compare(before(), after())
    rows = {
        (row.line.line if row.line else None, row.kind): (round(row.a / US), round(row.b / US))
        for row in comparison.groups
    }
    assert rows == {
        (3, "waits for all-gather"): (152, 0),
        (None, "waits for HBM copies"): (0, 100),
        (5, "dots"): (0, 70),
        (4, "dots"): (60, 0),
        (3, "waits for collective-permute"): (0, 31),
        (None, "other compute"): (30, 0),
    }
    sizes = [abs(row.difference) for row in comparison.groups]
    assert sizes == sorted(sizes, reverse=True)
    assert comparison.difference == pytest.approx(-41 * US)


def test_kinds_and_their_total() -> None:
    comparison = compare(before(), after())
    rows = comparison.tables()["By kind"].rows
    assert rows == (
        ("waits for all-gather", "152.00", "0.00", "-152.00", "-62.8%"),
        ("waits for HBM copies", "0.00", "100.00", "+100.00", "+41.3%"),
        ("waits for collective-permute", "0.00", "31.00", "+31.00", "+12.8%"),
        ("other compute", "30.00", "0.00", "-30.00", "-12.4%"),
        ("dots", "60.00", "70.00", "+10.00", "+4.1%"),
        ("total", "242.00", "201.00", "-41.00", "-16.9%"),
    )
    for groups in (comparison.kinds, comparison.groups):
        assert sum(row.a for row in groups) == pytest.approx(comparison.a.total_seconds)
        assert sum(row.b for row in groups) == pytest.approx(comparison.b.total_seconds)


def test_the_conclusion() -> None:
    assert compare(before(), after()).conclusion == (
        "So A is predicted to take 242.00 us and B 201.00 us: 41.00 us (16.9%) less; the largest "
        "difference is in waits for all-gather at you/model.py:3: 152.00 us less."
    )
    assert "41.00 us (20.4%) more" in compare(after(), before()).conclusion
    same = compare(before(), before()).conclusion
    assert same == "So A is predicted to take 242.00 us and B the same; no group of ops differs."
    moved = compare(before(), run("\n".join([GATHER + at(3), dot("d", 90) + at(4)]))).conclusion
    assert (
        "and B the same; the largest difference is in dots at you/model.py:4: 30.00 us more"
        in moved
    )


def test_lines_that_moved_are_matched_by_their_text(tmp_path: Path) -> None:
    """Both have line 1; lines 2 and 4 have the text of 5 and 6, in this order; only A has line 3."""
    text = ("a = 1", "y = x @ w", "b = 2", "y = x @ w", "    y = x @ w", "y = x @ w")
    (tmp_path / "model.py").write_text("\n".join(text))

    def of(*lines: tuple[int, int]) -> Timeline:
        there = f"{tmp_path}/model.py"
        return run(
            "\n".join(
                dot(f"d{n}", us) + at(n).replace("/home/you/model.py", there) for n, us in lines
            )
        )

    comparison = compare(of((1, 10), (2, 20), (3, 30), (4, 40)), of((1, 11), (5, 26), (6, 44)))
    groups = [
        (row.line and row.line.line, row.line_b and row.line_b.line, round(row.difference / US))
        for row in comparison.groups
    ]
    assert groups == [(3, None, -30), (2, 5, 6), (4, 6, 4), (1, None, 1)]
    assert f"{tmp_path.name}/model.py:2|5 dots" in str(comparison)


def test_printed_with_legends_within_a_terminal() -> None:
    """Forty lines of random lengths: those that differ most are shown, and the sum of the others."""
    draw = random.Random(1)
    a, b = (
        run("\n".join(dot(f"d{i}", draw.randrange(1, 99)) + at(i) for i in range(40))) for _ in "ab"
    )
    comparison = compare(a, b)
    text = str(comparison)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert "A: m on TPU v4; B: m on TPU v4; replayed (predicted)" in text
    assert " ".join(text.split()).endswith(comparison.conclusion)
    for table in comparison.tables().values():
        assert all(f"{column}: " in table.meaning for column in table.head)
        for column, exact in (
            (1, a.total_seconds),
            (2, b.total_seconds),
            (3, comparison.difference),
        ):
            *rows, total = [float(row[column]) for row in table.rows]
            assert sum(rows) == pytest.approx(total, abs=0.2)
            assert total == pytest.approx(exact / US, abs=0.01)
    shown = comparison.tables()["By source line and kind"].rows
    assert shown[-2][0] == "25 other groups"
    sizes = [abs(float(row[3])) for row in shown[:15]]
    assert all(first >= second for first, second in itertools.pairwise(sizes))


def test_only_timelines_are_compared() -> None:
    with pytest.raises(ValueError, match="b is str, and compare takes timelines: give what"):
        compare(before(), typing.cast("Timeline", "x"))
