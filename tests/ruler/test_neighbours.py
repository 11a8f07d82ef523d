"""Collectives next to dots, found in schedules written by hand."""

from __future__ import annotations

import pytest

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo.neighbours import dots_next_to_collectives

GROUPS = "replica_groups={{0,1,2,3}}"
DOT = "  ROOT %dot = bf16[8,16]{1,0} fusion(%g, %v), kind=kOutput, calls=%mm"


def near(lines: str) -> dict[str, list[str]]:
    """The lines of dots next to collectives, in a module with a fusion %mm around a dot of line 7."""
    module = hlo.parse(f"""HloModule m, is_scheduled=true, num_partitions=4

FileNames
1 "/home/user/model.py"

FunctionNames
1 "layer"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=7}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}

%mm (a: bf16[8,64], w: bf16[64,16]) -> bf16[8,16] {{
  %a = bf16[8,64]{{1,0}} parameter(0)
  %w = bf16[64,16]{{1,0}} parameter(1)
  %n = bf16[8,64]{{1,0}} negate(%a)
  ROOT %d = bf16[8,16]{{1,0}} dot(%n, %w), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}, \
metadata={{op_name="d" stack_frame_id=1}}
}}

ENTRY %main (x: bf16[8,16], y: bf16[2,64], z: bf16[8,64], v: bf16[64,16]) -> bf16[8,16] {{
  %x = bf16[8,16]{{1,0}} parameter(0)
  %y = bf16[2,64]{{1,0:S(1)}} parameter(1)
  %z = bf16[8,64]{{1,0}} parameter(2)
  %v = bf16[64,16]{{1,0}} parameter(3)
{lines}
}}
""")
    return {
        name: [str(line) for line in traced]
        for name, traced in dots_next_to_collectives(module).items()
    }


@pytest.mark.parametrize(
    "gather",
    [
        f"  %g = bf16[8,64]{{1,0}} all-gather(%x), {GROUPS}, dimensions={{1}}",
        f"  %g = bf16[8,64]{{1,0}} all-gather(%y), {GROUPS}, dimensions={{0}}",
    ],
)
def test_a_gather_before_a_dot(gather: str) -> None:
    assert near(f"{gather}\n{DOT}") == {"g": ["/home/user/model.py:7"]}


@pytest.mark.parametrize(
    "after",
    [
        f"bf16[8,4]{{1,0}} reduce-scatter(%c), {GROUPS}, dimensions={{1}}",
        f"bf16[8,16]{{1,0}} all-reduce(%c), {GROUPS}",
    ],
)
def test_a_reduction_after_a_dot(after: str) -> None:
    lines = [
        "  %dot = bf16[8,16]{1,0} fusion(%z, %v), kind=kOutput, calls=%mm",
        "  %c = bf16[8,16]{1,0} bitcast(%dot)",
        f"  ROOT %r = {after}",
    ]
    assert near("\n".join(lines)) == {"r": ["/home/user/model.py:7"]}


def test_a_collective_with_no_dot_next_to_it() -> None:
    lines = [
        f"  %g = bf16[8,64]{{1,0}} all-gather(%y), {GROUPS}, dimensions={{0}}",
        "  %n = bf16[8,64]{1,0} negate(%g)",
        "  ROOT %dot = bf16[8,16]{1,0} fusion(%z, %v), kind=kOutput, calls=%mm",
    ]
    assert near("\n".join(lines)) == {}
