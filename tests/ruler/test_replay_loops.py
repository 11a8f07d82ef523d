"""The replay of loops, and of collectives that loops and fusions carry along."""

from __future__ import annotations

import pytest

from .schedules import (
    FORWARD,
    GROUPS,
    ON_CHIP,
    US,
    done,
    dot,
    permute,
    run,
)


def loop(count: int, lines: list[str]) -> tuple[str, str]:
    """The computations of a loop around some lines, and the line that runs it."""
    body = "\n".join("  " + line for line in lines)
    computations = f"""%body (p: s8[100]) -> s8[100] {{
  %p = {ON_CHIP} parameter(0)
  %q = s8[10,10]{{1,0:S(1)}} bitcast(%p)
{body}
}}

%condition (p: s8[100]) -> pred[] {{
  %p = {ON_CHIP} parameter(0)
  ROOT %true = pred[] constant(true)
}}

"""
    config = f'backend_config={{"known_trip_count":{{"n":"{count}"}}}}'
    line = f"%l = {ON_CHIP} while(%p), condition=%condition, body=%body, {config}"
    return computations, line


def test_loop() -> None:
    before, line = loop(7, [permute("a", FORWARD), dot("d", 40), "ROOT " + done("a")])
    timeline = run(line, before)
    assert timeline.total_seconds == pytest.approx(7 * 101 * US)
    assert timeline.exposed_seconds == pytest.approx(7 * 61 * US)
    assert timeline.link_bytes["x+"] == pytest.approx(700)
    assert len([event for event in timeline.events if event.kind == "dot"]) == 7
    assert timeline.events[-1].end == pytest.approx(timeline.total_seconds)


def test_what_is_in_flight_when_a_loop_starts_slows_its_first_iterations() -> None:
    before, line = loop(5, [permute("a", FORWARD), "ROOT " + done("a")])
    lines = [permute("outer", FORWARD), line, done("outer")]
    timeline = run("\n".join(lines), before)
    assert timeline.total_seconds == pytest.approx((200 + 1 + 4 * 101) * US)


def test_a_loop_carries_what_is_in_flight_along() -> None:
    before, line = loop(3, ["ROOT " + dot("d", 40)])
    state = f"{ON_CHIP}, {ON_CHIP}"
    lines = [
        permute("a", FORWARD),
        f"%state = {ON_CHIP} get-tuple-element(%a), index=1",
        f"%carry = ({state}) tuple(%p, %state)",
        line.replace("while(%p)", "while(%carry)").replace(ON_CHIP, f"({state})"),
        f"%after = {ON_CHIP} get-tuple-element(%l), index=1",
        f"%a-done = {ON_CHIP} collective-permute-done(%after)",
    ]
    timeline = run("\n".join(lines), before)
    assert timeline.total_seconds == pytest.approx(120 * US)
    assert timeline.exposed_seconds == 0


CARRIED = f"""%start (p0: s8[100]) -> (s8[100], s8[400], u32[]) {{
  %p0 = {ON_CHIP} parameter(0)
  %g = s8[400]{{0:S(1)}} all-gather(%p0), {GROUPS}, dimensions={{0}}
  ROOT %c = (s8[100]{{0:S(1)}}, s8[400]{{0:S(1)}}, u32[]{{:S(2)}}) custom-call(%g), \
custom_call_target="AsyncCollectiveStart"
}}

%step (p0: s8[100], p1: s8[400], p2: s8[10,10]) -> (s8[10,10], s8[100], s8[400]) {{
  %p2 = s8[10,10]{{1,0:S(1)}} parameter(2)
  %d = s8[10,10]{{1,0:S(1)}} dot(%p2, %p2), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
  %p0 = {ON_CHIP} parameter(0)
  %p1 = s8[400]{{0:S(1)}} parameter(1)
  %g = s8[400]{{0:S(1)}} all-gather(%p0), {GROUPS}, dimensions={{0}}, \
backend_config={{"async_collective_fusion_config":{{"flag_start":"2","flag_end":"8"}}}}
  ROOT %t = (s8[10,10]{{1,0:S(1)}}, s8[100]{{0:S(1)}}, s8[400]{{0:S(1)}}) tuple(%d, %p0, %g)
}}

%finish (p0: s8[100], p1: s8[400]) -> s8[400] {{
  %p0 = {ON_CHIP} parameter(0)
  %p1 = s8[400]{{0:S(1)}} parameter(1)
  %g = s8[400]{{0:S(1)}} all-gather(%p0), {GROUPS}, dimensions={{0}}
  ROOT %c = s8[400]{{0:S(1)}} custom-call(%p0, %g), custom_call_target="AsyncCollectiveDone"
}}

"""


def test_a_collective_carried_along_by_a_fusion_is_asynchronous() -> None:
    timeline = run(
        f"""%async-collective-start = ({ON_CHIP}, s8[400]{{0:S(1)}}, u32[]{{:S(2)}}) \
fusion(%p), kind=kCustom, calls=%start
        %a0 = {ON_CHIP} get-tuple-element(%async-collective-start), index=0
        %a1 = s8[400]{{0:S(1)}} get-tuple-element(%async-collective-start), index=1
        %s = (s8[10,10]{{1,0:S(1)}}, {ON_CHIP}, s8[400]{{0:S(1)}}) fusion(%a0, %a1, %q), \
kind=kOutput, calls=%step, output_to_operand_aliasing={{{{1}}: (0, {{}}), {{2}}: (1, {{}})}}, \
backend_config={{"estimated_cycles":"60"}}
        %b0 = {ON_CHIP} get-tuple-element(%s), index=1
        %b1 = s8[400]{{0:S(1)}} get-tuple-element(%s), index=2
        %f = s8[400]{{0:S(1)}} fusion(%b0, %b1), kind=kCustom, calls=%finish""",
        CARRIED,
    )
    assert timeline.dot_seconds == pytest.approx(60 * US)
    assert timeline.total_seconds == pytest.approx(152 * US)
    assert timeline.exposed_by_op == {"async-collective-start": pytest.approx(92 * US)}
