"""Collectives next to dots, found in schedules written by hand."""

from __future__ import annotations

import pytest

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo.neighbours import Neighbours, neighbours

GROUPS = "replica_groups={{0,1,2,3}}"


def near(
    lines: str, contract: str = "lhs_contracting_dims={1}, rhs_contracting_dims={0}"
) -> list[Neighbours]:
    """The neighbours in a module with a fusion %mm of bf16[8,64] and bf16[64,16] to bf16[8,16]."""
    return list(
        neighbours(
            hlo.parse(f"""HloModule m, is_scheduled=true, num_partitions=4

%inner (i: bf16[8,64]) -> bf16[8,64] {{
  %i = bf16[8,64]{{1,0}} parameter(0)
  ROOT %b = bf16[8,64]{{1,0}} bitcast(%i)
}}

%mm (a: bf16[8,64], w: bf16[64,16]) -> bf16[8,16] {{
  %a = bf16[8,64]{{1,0}} parameter(0)
  %w = bf16[64,16]{{1,0}} parameter(1)
  %again = bf16[8,64]{{1,0}} fusion(%a), kind=kLoop, calls=%inner
  ROOT %d = bf16[8,16]{{1,0}} dot(%again, %w), {contract}
}}

ENTRY %main (x: bf16[8,16], y: bf16[2,64], z: bf16[8,64], v: bf16[64,16]) -> bf16[8,16] {{
  %x = bf16[8,16]{{1,0}} parameter(0)
  %y = bf16[2,64]{{1,0:S(1)}} parameter(1)
  %z = bf16[8,64]{{1,0}} parameter(2)
  %v = bf16[64,16]{{1,0}} parameter(3)
{lines}
}}
""")
        )
    )


DOT = "  ROOT %dot = bf16[8,16]{1,0} fusion(%g, %v), kind=kOutput, calls=%mm"


@pytest.mark.parametrize(
    ("gather", "dimension", "on_chip"),
    [
        (
            f"  %g = bf16[8,64]{{1,0}} all-gather(%x), {GROUPS}, dimensions={{1}}",
            "contracted",
            False,
        ),
        (f"  %g = bf16[8,64]{{1,0}} all-gather(%y), {GROUPS}, dimensions={{0}}", "rows", True),
    ],
)
def test_a_gather_before_a_dot(gather: str, dimension: str, on_chip: bool) -> None:
    (one,) = near(f"{gather}\n{DOT}")
    assert (one.name, one.kind, one.groups) == ("g", "all-gather", ((0, 1, 2, 3),))
    assert (one.rows, one.contracted, one.columns) == (8, 64, 16)
    assert (one.dimension, one.on_chip) == (dimension, on_chip)
    assert one.dtypes == ("bf16",) * 3


@pytest.mark.parametrize(
    ("after", "kind", "dimension"),
    [
        (
            f"bf16[8,4]{{1,0}} reduce-scatter(%c), {GROUPS}, dimensions={{1}}",
            "reduce-scatter",
            "columns",
        ),
        (
            f"bf16[2,16]{{1,0}} reduce-scatter(%c), {GROUPS}, dimensions={{0}}",
            "reduce-scatter",
            "rows",
        ),
        (f"bf16[8,16]{{1,0}} all-reduce(%c), {GROUPS}", "all-reduce", ""),
    ],
)
def test_a_reduction_after_a_dot(after: str, kind: str, dimension: str) -> None:
    lines = [
        "  %dot = bf16[8,16]{1,0} fusion(%z, %v), kind=kOutput, calls=%mm",
        "  %c = bf16[8,16]{1,0} bitcast(%dot)",
        f"  ROOT %r = {after}",
    ]
    (one,) = near("\n".join(lines))
    assert (one.name, one.kind, one.dimension) == ("r", kind, dimension)
    assert (one.rows, one.contracted, one.columns) == (8, 64, 16)


def test_a_collective_with_no_dot_next_to_it() -> None:
    lines = [
        f"  %g = bf16[8,64]{{1,0}} all-gather(%y), {GROUPS}, dimensions={{0}}",
        "  %n = bf16[8,64]{1,0} negate(%g)",
        "  ROOT %dot = bf16[8,16]{1,0} fusion(%z, %v), kind=kOutput, calls=%mm",
    ]
    assert near("\n".join(lines)) == []
