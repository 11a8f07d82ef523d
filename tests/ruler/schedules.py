"""Small scheduled programs on a ring of four made-up chips, and their replay."""

from __future__ import annotations

import dataclasses

from collective_einsum.chips.known_chips import TPU_V4
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.simulation import replay_module
from collective_einsum.ruler.replay.timeline import Timeline
from collective_einsum.ruler.torus import Torus

# One cycle is a microsecond, one byte over a link a microsecond, HBM is ten times a link.
CHIP = dataclasses.replace(
    TPU_V4,
    clock_hz=1e6,
    link_bandwidth=1e6,
    hbm_bandwidth=1e7,
    hop_seconds=1e-6,
    permute_seconds=0.0,
    collective_seconds=0.0,
    hbm_efficiency=1.0,
    hbm_fill_seconds=0.0,
    bf16_flops=1e9,
)


RING = Torus(((0,), (1,), (2,), (3,)), (4,), (True,), ("x",))
US = 1e-6
FORWARD = "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}"
BACKWARD = "source_target_pairs={{1,0},{2,1},{3,2},{0,3}}"


# On-chip shapes: 100 bytes in VMEM.
ON_CHIP = "s8[100]{0:S(1)}"
PERMUTE = f"({ON_CHIP}, {ON_CHIP}, u32[]{{:S(2)}}, u32[]{{:S(2)}})"
DOT = """%dot (p0: s8[10,10]) -> s8[10,10] {
  %p0 = s8[10,10]{1,0:S(1)} parameter(0)
  ROOT %d = s8[10,10]{1,0:S(1)} dot(%p0, %p0), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

"""


def module(lines: str, before: str = "", head: str = "num_partitions=4") -> hlo.Module:
    """A scheduled module; %p is a parameter on the chip, %w one of 1000 bytes in HBM."""
    *ops, last = (line.strip() for line in lines.strip().splitlines())
    body = "\n".join(f"  {line}" for line in (*ops, f"ROOT {last.removeprefix('ROOT ')}"))
    return hlo.parse(f"""HloModule m, is_scheduled=true, {head}

{DOT}{before}ENTRY %main (p: s8[100], w: s8[1000]) -> s8[100] {{
  %p = {ON_CHIP} parameter(0)
  %q = s8[10,10]{{1,0:S(1)}} bitcast(%p)
  %w = s8[1000]{{0}} parameter(1)
{body}
}}
""")


def run(lines: str, before: str = "") -> Timeline:
    return replay_module(module(lines, before), RING, CHIP)


def dot(name: str, cycles: int) -> str:
    """A fusion with a dot in it."""
    config = f'backend_config={{"window_config":{{"estimated_cycles":"{cycles}"}}}}'
    return f"%{name} = s8[10,10]{{1,0:S(1)}} fusion(%q), kind=kOutput, calls=%dot, {config}"


def permute(name: str, pairs: str) -> str:
    return f"%{name} = {PERMUTE} collective-permute-start(%p), {pairs}"


def done(name: str) -> str:
    return f"%{name}-done = {ON_CHIP} collective-permute-done(%{name})"


GROUPS = "replica_groups={{0,1,2,3}}"
