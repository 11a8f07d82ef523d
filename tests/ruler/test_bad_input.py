"""Texts that are cut short or do not fit the slice, and ops that the reader does not know."""

from __future__ import annotations

import re

import pytest

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.simulation import replay_module

from .schedules import CHIP, DOT, FORWARD, ON_CHIP, RING, US, done, dot, module, permute, run

UNKNOWN = "that this reader of schedules does not know"
TEXT = f"""HloModule m, is_scheduled=true, num_partitions=4

FileNames
1 "/home/you/model.py"

FunctionNames
1 "mlp"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=8 end_line=8 column=4 end_column=9}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}

{DOT}ENTRY %main (p: s8[100]) -> s8[100] {{
  %p = {ON_CHIP} parameter(0)
  %q = s8[10,10]{{1,0:S(1)}} bitcast(%p)
  {permute("a", FORWARD)}, metadata={{op_name="f(\\"x" stack_frame_id=1}}
  {dot("d", 40)}
  ROOT {done("a")}
}}
"""


def test_a_text_that_is_cut_anywhere_is_refused_in_words() -> None:
    """After every character: only what follows the last bracket of the entry may be missing."""
    expected = replay_module(hlo.parse(TEXT), RING, CHIP)
    assert expected.total_seconds == pytest.approx(101 * US)
    complete = TEXT.rindex("}")
    for end in range(complete + 1):
        with pytest.raises(ValueError, match=r"`compiled\.as_text\(\)`|compiled program"):
            hlo.parse(TEXT[:end])
    assert replay_module(hlo.parse(TEXT[: complete + 1]), RING, CHIP) == expected


def test_a_text_without_one_of_its_lines() -> None:
    """It is refused in words, or it is another program: nothing in between, such as a KeyError."""
    lines = TEXT.splitlines(keepends=True)
    messages = []
    for place in range(len(lines)):
        text = "".join(lines[:place] + lines[place + 1 :])
        try:
            assert replay_module(hlo.parse(text), RING, CHIP).total_seconds > 0
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > len(lines) / 2
    assert min(len(message.split()) for message in messages) > 8


def test_names_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"op d of computation main names sum, which .* cut short"):
        run(dot("d", 1).replace("calls=%dot", "calls=%sum"))
    with pytest.raises(ValueError, match="op d of computation main names x, which"):
        run(dot("d", 1).replace("fusion(%q)", "fusion(%x)"))


def test_a_computation_without_a_result_is_refused() -> None:
    text = """HloModule m, is_scheduled=true

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
}
"""
    with pytest.raises(ValueError, match="computation main of the HLO module has no ROOT op"):
        hlo.parse(text)


def test_a_line_that_ends_too_early_is_shown() -> None:
    with pytest.raises(
        ValueError, match=r"the line 'ROOT %c = s8\[4\]\{0\} neg' .* cannot be read"
    ):
        run("%c = s8[4]{0} neg")


@pytest.mark.parametrize(
    ("head", "devices"),
    [("num_partitions=8", 8), ("replica_count=8", 8), ("replica_count=2, num_partitions=4", 8)],
)
def test_a_slice_that_the_module_was_not_compiled_for(head: str, devices: int) -> None:
    with pytest.raises(
        ValueError, match=f"for {devices} devices but the mesh has 4; pass the mesh"
    ):
        replay_module(module(dot("d", 1), head=head), RING, CHIP)


@pytest.mark.parametrize("head", ["num_partitions=4", "replica_count=4", "entry_layout={}"])
def test_a_slice_that_it_was_compiled_for(head: str) -> None:
    timeline = replay_module(module(dot("d", 7), head=head), RING, CHIP)
    assert timeline.total_seconds == pytest.approx(7 * US)


def test_an_unknown_op_is_counted_and_named() -> None:
    """It takes its HBM bytes, or its estimate: 100 and 30 us here."""
    estimate = 'backend_config={"estimated_cycles":"30"}'
    lines = [f"%x = {ON_CHIP} frobnicate(%w)", f"%y.1 = {ON_CHIP} twist(%p), {estimate}"]
    timeline = run("\n".join(lines))
    assert timeline.total_seconds == pytest.approx(130 * US)
    (note,) = timeline.notes
    assert note.startswith(f"2 ops (frobnicate, twist) {UNKNOWN}")
    assert note.endswith("x (frobnicate), y.1 (twist)")
    assert "note: 2 ops (frobnicate, twist)" in str(timeline)


@pytest.mark.parametrize("where", ["{%s}", '{"window_config":{%s}}'])
def test_an_op_whose_estimate_is_the_largest_number_is_charged_its_bytes(where: str) -> None:
    estimate = where % f'"estimated_cycles":"{2**63 - 1}"'
    timeline = run(f"%x = {ON_CHIP} negate(%w), backend_config={estimate}")
    assert timeline.total_seconds == pytest.approx(100 * US)
    (note,) = timeline.notes
    assert note.startswith("1 op (negate) that the compiler gives no estimate of; charged the time")


def test_an_unknown_transfer_is_counted_and_named() -> None:
    copy = "(s8[1000]{0}, s8[1000]{0:S(1)}, u32[]{:S(2)})"
    timeline = run(f"%c = {copy} teleport-start(%w)\n%e = s8[1000]{{0:S(1)}} teleport-done(%c)")
    assert timeline.total_seconds == pytest.approx(100 * US)
    assert timeline.notes[0].startswith(f"1 op (teleport-start) {UNKNOWN}")


def test_many_are_counted_and_some_are_named() -> None:
    timeline = run("\n".join(f"%x.{i} = {ON_CHIP} frobnicate(%w)" for i in range(9)))
    assert re.search(r"9 ops .*: x\.0 \(frob.*x\.4 \(frobnicate\) and 4 more$", timeline.notes[0])


def test_an_array_on_the_chip_without_an_estimate_is_named() -> None:
    timeline = run(f"%n = {ON_CHIP} negate(%p)\n%s = s32[] constant(1)\n%a = s32[] add(%s, %s)")
    (note,) = timeline.notes
    assert note.startswith("1 op (negate) without an estimate")
    assert note.endswith("charged no time: n (negate)")


def test_what_is_exchanged_with_the_host_is_named() -> None:
    lines = f"""%t = token[] after-all()
    %s = ({ON_CHIP}, u32[], token[]) send(%p, %t), channel_id=1, is_host_transfer=true
    %e = token[] send-done(%s), channel_id=1, is_host_transfer=true
    {dot("d", 5)}"""
    timeline = run(lines)
    assert timeline.total_seconds == pytest.approx(5 * US)
    (note,) = timeline.notes
    assert note.startswith("2 ops (send, send-done) that exchange data with the host")


def test_known_ops_have_no_note() -> None:
    lines = [permute("a", FORWARD), dot("d", 40), done("a"), f"%n = {ON_CHIP} copy(%p)"]
    assert run("\n".join(lines)).notes == ()
