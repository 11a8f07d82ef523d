"""What every collective overlaps, and what links and HBM carry, on schedules timed by hand."""

from __future__ import annotations

import random

import pytest

from collective_einsum.ruler.replay import WIDTH, CollectiveOverlap
from collective_einsum.ruler.replay.intervals import Intervals
from collective_einsum.ruler.replay.timeline import Timeline

from .schedules import BACKWARD, FORWARD, GROUPS, ON_CHIP, US, done, dot, permute, run

LINE = 'metadata={op_name="jit(f)/x" source_file="/home/you/model.py" source_line=8}'
OTHER = 'backend_config={"estimated_cycles":"30"}'


def overlaps(timeline: Timeline) -> dict[str, CollectiveOverlap]:
    return {row.name: row for row in timeline.collectives()}


def seconds(row: CollectiveOverlap) -> list[float]:
    return [
        round(s / US, 6) for s in (row.in_flight, row.dots, row.compute, row.exposed, row.waits)
    ]


def test_dots_other_compute_and_waits() -> None:
    """A permute of 101 us behind a dot of 40 and a sum of 30: 31 are waited for."""
    other = f"%n = {ON_CHIP} negate(%p), {OTHER}"
    lines = [f"{permute('a', FORWARD)}, {LINE}", dot("d", 40), other, done("a")]
    row = overlaps(run("\n".join(lines)))["a"]
    assert seconds(row) == [101, 40, 30, 31, 0]
    assert (row.op, row.runs, row.line and row.line.line) == ("collective-permute", 1, 8)


def test_a_wait_for_another_transfer_is_not_its_own() -> None:
    """A copy from HBM takes 100 us, and the chip waits for it first: the permute has one hop left."""
    copy = "%c = (s8[1000]{0:S(1)}, s8[1000]{0}, u32[]{:S(2)}) copy-start(%w)"
    lines = [permute("a", FORWARD), copy, "%e = s8[1000]{0:S(1)} copy-done(%c)", done("a")]
    assert seconds(overlaps(run("\n".join(lines)))["a"]) == [101, 0, 0, 1, 100]


def test_two_directions_and_a_synchronous_collective() -> None:
    lines = [permute("a", FORWARD), permute("b", BACKWARD), dot("d", 150), done("a"), done("b")]
    lines.append(f"%g = s8[400]{{0:S(1)}} all-gather(%p), {GROUPS}, dimensions={{0}}")
    timeline = run("\n".join(lines))
    rows = overlaps(timeline)
    assert list(rows) == ["g", "a", "b"]
    assert seconds(rows["a"]) == seconds(rows["b"]) == [101, 101, 0, 0, 0]
    assert seconds(rows["g"]) == [152, 0, 0, 152, 0]
    # 100 bytes of a permute, and half of 3/4 of 400 gathered, over links of 1 byte/us, in 302 us.
    assert timeline.link_bytes == {"x+": 250, "x-": 250}
    assert timeline.sent_bytes == 500
    assert timeline.link_occupancy == {k: pytest.approx(250 / 302) for k in ("x+", "x-")}
    assert timeline.hbm_occupancy == 0


def test_a_loop_runs_its_permute_as_often() -> None:
    state = f"(s32[], {ON_CHIP})"
    before = f"""%body (s: (s32[], s8[100])) -> (s32[], s8[100]) {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %p = {ON_CHIP} get-tuple-element(%s), index=1
  %q = s8[10,10]{{1,0:S(1)}} bitcast(%p)
  {permute("a", FORWARD)}
  {dot("d", 60)}
  {done("a")}
  ROOT %t = {state} tuple(%i, %a-done)
}}

%condition (s: (s32[], s8[100])) -> pred[] {{
  %s = {state} parameter(0)
  ROOT %c = pred[] constant(true)
}}

"""
    loop = 'backend_config={"known_trip_count":{"n":"5"}}'
    timeline = run(
        f"""%zero = s32[] constant(0)
        %t = {state} tuple(%zero, %p)
        %loop = {state} while(%t), condition=%condition, body=%body, {loop}""",
        before,
    )
    row = overlaps(timeline)["a"]
    assert (row.runs, seconds(row)) == (5, [505, 300, 0, 205, 0])
    assert timeline.total_seconds == pytest.approx(505 * US)
    assert timeline.sent_bytes == 500


def test_hbm_is_occupied_by_what_was_read() -> None:
    """1000 bytes of HBM at 10 bytes/us, and a dot of 300 us on the chip."""
    copy = "%c = (s8[1000]{0:S(1)}, s8[1000]{0}, u32[]{:S(2)}) copy-start(%w)"
    timeline = run("\n".join([copy, dot("d", 400), "%e = s8[1000]{0:S(1)} copy-done(%c)"]))
    assert timeline.hbm_occupancy == pytest.approx(0.25)
    assert timeline.collectives() == ()


def test_printed_with_legends() -> None:
    names = [f"p{i}" for i in range(14)]
    lines = [line for name in names for line in (permute(name, FORWARD), done(name))]
    timeline = run("\n".join([f"{permute('a', FORWARD)}, {LINE}", dot("d", 40), done("a"), *lines]))
    text = str(timeline)
    assert max(map(len, text.splitlines())) <= WIDTH
    rows = timeline.tables()["What every collective overlaps"].rows
    assert rows[0] == ("p0 collective-permute", "1", "101.00", "0.00", "0.00", "101.00", "0.00", "")
    # Twelve rows have names; the sums of p12, p13 and a are left.
    assert rows[12:] == (("3 others", "3", "303.00", "40.00", "0.00", "263.00", "0.00", ""),)
    assert timeline.tables()["Bytes"].rows[:2] == (
        ("HBM", "0.000", "", "", "0.0%"),
        ("x+", "0.002", "1500.00", "99.0%", "99.0%"),
    )
    for title, table in timeline.tables().items():
        assert f"{title}:\n\n{table.head[0]}" in text
        assert all(len(row) == len(table.head) for row in table.rows)
        assert all(f"{column}: " in table.meaning for column in table.head)


def test_collectives_of_one_line_are_one_row() -> None:
    """Three permutes traced from one line, as of unrolled layers, and one of another."""
    other = LINE.replace("=8}", "=9}")
    lines = [f"{permute('z', FORWARD)}, {other}", done("z")]
    for name in "abc":
        lines += [f"{permute(name, FORWARD)}, {LINE}", dot(f"d{name}", 40), done(name)]
    timeline = run("\n".join(lines))
    rows = timeline.tables()["What every collective overlaps"].rows
    assert rows == (
        (
            "a +2 collective-permute",
            "3",
            "303.00",
            "120.00",
            "0.00",
            "183.00",
            "0.00",
            "you/model.py:8",
        ),
        ("z collective-permute", "1", "101.00", "0.00", "0.00", "101.00", "0.00", "you/model.py:9"),
    )
    assert len(timeline.collectives()) == 4


def test_covered_is_the_union_within() -> None:
    """Against a count of tenths, over random intervals."""
    draw = random.Random(0)
    for _ in range(200):
        pairs = [sorted(draw.sample(range(60), 2)) for _ in range(draw.randrange(6))]
        ticks = {tick for start, end in pairs for tick in range(start, end)}
        union = Intervals((start, end) for start, end in pairs)
        start, end = sorted(draw.sample(range(60), 2))
        assert union.length == len(ticks)
        assert union.covered(start, end) == len(ticks & set(range(start, end)))
