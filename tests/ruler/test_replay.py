"""The replay, on schedules small enough to time by hand, and on a program compiled for v4."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from collective_einsum.chips.known_chips import TPU_V4
from collective_einsum.ruler.compile.targets import Target, target
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay.simulation import replay, replay_module
from collective_einsum.ruler.replay.timeline import Timeline
from collective_einsum.ruler.torus import Torus

# One cycle is a microsecond, one byte over a link a microsecond, HBM is ten times a link.
CHIP = dataclasses.replace(
    TPU_V4, clock_hz=1e6, link_bandwidth=1e6, hbm_bandwidth=1e7, hop_seconds=1e-6, bf16_flops=1e9
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
    body = "\n".join("  " + line.strip() for line in lines.strip().splitlines())
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


def test_a_permute_behind_a_dot_is_hidden() -> None:
    timeline = run("\n".join([permute("a", FORWARD), dot("d", 150), done("a")]))
    assert timeline.total_seconds == pytest.approx(150 * US)
    assert timeline.dot_seconds == timeline.compute_seconds == pytest.approx(150 * US)
    assert timeline.exposed_seconds == 0
    assert timeline.communication_seconds == pytest.approx(101 * US)
    assert timeline.hidden_fraction == 1
    assert timeline.permutes_in_flight_during_dots() == {"a": pytest.approx(100 * US)}
    assert timeline.link_bytes == {"x+": 100, "x-": 0}
    assert timeline.link_busy_seconds["x+"] == pytest.approx(100 * US)
    assert timeline.flops == 2 * 10 * 10 * 10
    assert timeline.mfu == pytest.approx(2000 / (1e9 * 150 * US))


def test_a_permute_longer_than_its_dot_stalls() -> None:
    timeline = run("\n".join([permute("a", FORWARD), dot("d", 40), done("a")]))
    assert timeline.total_seconds == pytest.approx(101 * US)
    assert timeline.exposed_by_op == {"a": pytest.approx(61 * US)}


def test_a_permute_that_nothing_hides() -> None:
    timeline = run("\n".join([permute("a", FORWARD), done("a"), dot("d", 40)]))
    assert timeline.total_seconds == pytest.approx(141 * US)
    assert timeline.exposed_seconds == pytest.approx(101 * US)
    assert timeline.permutes_in_flight_during_dots() == {}


@pytest.mark.parametrize(("second", "seconds"), [(FORWARD, 201), (BACKWARD, 101)])
def test_contention(second: str, seconds: float) -> None:
    """Two permutes at once take twice as long in one direction, and no longer in two."""
    lines = [permute("a", FORWARD), permute("b", second), done("a"), done("b")]
    assert run("\n".join(lines)).total_seconds == pytest.approx(seconds * US)


GROUPS = "replica_groups={{0,1,2,3}}"


@pytest.mark.parametrize(
    ("line", "seconds", "link_bytes"),
    [
        (f"s8[400]{{0:S(1)}} all-gather(%p), {GROUPS}, dimensions={{0}}", 150 + 2, 150),
        (f"s8[25]{{0:S(1)}} reduce-scatter(%p), {GROUPS}, dimensions={{0}}", 37.5 + 2, 37.5),
        (f"{ON_CHIP} all-reduce(%p), {GROUPS}", 75 + 4, 75),
        (f"{ON_CHIP} all-to-all(%p), {GROUPS}, dimensions={{0}}", 50 + 2, 50),
        (f"{ON_CHIP} collective-permute(%p), {FORWARD}", 100 + 1, 100),
    ],
)
def test_synchronous_collectives(line: str, seconds: float, link_bytes: float) -> None:
    timeline = run(f"%c = {line}\n{dot('d', 10)}")
    assert timeline.total_seconds == pytest.approx((seconds + 10) * US)
    assert timeline.exposed_by_op == {"c": pytest.approx(seconds * US)}
    assert timeline.link_bytes["x+"] == pytest.approx(link_bytes)


FUSED_REDUCE = f"""%scatter (p0: s8[100]) -> s8[25] {{
  %p0 = {ON_CHIP} parameter(0)
  %r = {ON_CHIP} all-reduce(%p0), {GROUPS}
  %i = s32[]{{:S(6)}} constant(0)
  ROOT %s = s8[25]{{0:S(1)}} dynamic-slice(%r, %i), dynamic_slice_sizes={{25}}
}}

"""


def test_all_reduce_and_slice_in_one_fusion_is_a_reduce_scatter() -> None:
    timeline = run("%c = s8[25]{0:S(1)} fusion(%p), kind=kCustom, calls=%scatter", FUSED_REDUCE)
    assert timeline.total_seconds == pytest.approx(39.5 * US)


STREAM = '%s = s8[4]{0:S(1)} fusion(%w), kind=kLoop, calls=%sum, backend_config={"estimated_cycles":"CYCLES"}'  # noqa: E501
SUM = """%sum (p0: s8[1000]) -> s8[4] {
  %p0 = s8[1000]{0} parameter(0)
  ROOT %n = s8[4]{0:S(1)} custom-call(%p0), custom_call_target="sum"
}

"""
COPY = "(s8[1000]{0:S(1)}, s8[1000]{0}, u32[]{:S(2)}) copy-start(%w)"
COPY_DONE = "s8[1000]{0:S(1)} copy-done(%c)"


@pytest.mark.parametrize(("cycles", "seconds"), [(300, 300), (10, 100)])
def test_hbm_floor(cycles: int, seconds: float) -> None:
    """An op takes its cycles, but never less than its bytes of HBM."""
    timeline = run(STREAM.replace("CYCLES", str(cycles)), SUM)
    assert timeline.total_seconds == pytest.approx(seconds * US)
    assert timeline.hbm_bytes == 1000


@pytest.mark.parametrize(("cycles", "seconds"), [(100, 200), (400, 400)])
def test_a_copy_beside_a_stream_does_not_get_the_bandwidth_twice(
    cycles: int, seconds: float
) -> None:
    lines = f"%c = {COPY}\n{STREAM.replace('CYCLES', str(cycles))}\n%e = {COPY_DONE}"
    timeline = run(lines, SUM)
    assert timeline.total_seconds == pytest.approx(seconds * US)
    assert timeline.total_seconds >= timeline.hbm_bytes / CHIP.hbm_bandwidth * (1 - 1e-9)
    assert (timeline.hbm_bytes, timeline.dma_bytes) == (2000, 1000)


def test_waiting_for_a_copy_is_not_communication() -> None:
    timeline = run(f"%c = {COPY}\n%e = {COPY_DONE}")
    assert timeline.dma_stall_by_op == {"c": pytest.approx(100 * US)}
    assert timeline.exposed_seconds == timeline.communication_seconds == 0


def test_a_slice_reads_only_itself() -> None:
    timeline = run(
        """%c = ((s8[1000]{0}), s8[300]{0:S(1)}, u32[]{:S(2)}) slice-start(%w), slice={[0:300]}
        %e = s8[300]{0:S(1)} slice-done(%c)"""
    )
    assert timeline.hbm_bytes == 300


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


def test_notes_name_what_was_assumed() -> None:
    timeline = run(f'%k = {ON_CHIP} custom-call(%w), custom_call_target="mine"')
    assert timeline.total_seconds == pytest.approx(100 * US)
    assert "custom call mine has no estimate" in timeline.notes[0]
    assert timeline.notes[0] in str(timeline)


def test_refused() -> None:
    unscheduled = dataclasses.replace(module(dot("d", 1)), is_scheduled=False)
    with pytest.raises(ValueError, match="not scheduled"):
        replay_module(unscheduled, RING, CHIP)
    with pytest.raises(ValueError, match="compiled for 8 devices but the mesh has 4"):
        replay_module(module(dot("d", 1), head="num_partitions=8"), RING, CHIP)
    with pytest.raises(ValueError, match="started outside"):
        run(f"%a-done = {ON_CHIP} collective-permute-done(%p)")
    cpus = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    text = (
        "HloModule m, is_scheduled=true\n\nENTRY %m () -> s8[] {\n  ROOT %c = s8[] constant(1)\n}"
    )
    with pytest.raises(ValueError, match="no coordinates on a torus"):
        replay(text, cpus, TPU_V4)


@pytest.fixture(scope="module")
def v4() -> Target:
    return target("v4:4x4x4")


def struct(mesh: jax.sharding.Mesh, shape: tuple[int, ...], spec: P) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))


@pytest.mark.tpu
def test_a_ring_compiled_for_v4(v4: Target) -> None:
    """Both directions of x carry half of each chunk, beside the dots."""
    mesh = v4.mesh((4, 4, 4), ("x", "y", "z"))
    ring = [(i, (i + 1) % 4) for i in range(4)]
    back = [(j, i) for i, j in ring]

    def looped(x: jax.Array, w: jax.Array) -> jax.Array:
        low, high = jnp.split(x, 2)
        out = []
        for step in range(4):
            out.append(jnp.concatenate([low, high]) @ w[step])
            if step < 3:
                low, high = lax.ppermute(low, "x", ring), lax.ppermute(high, "x", back)
        return sum(out[1:], out[0])

    mapped = jax.shard_map(looped, mesh=mesh, in_specs=(P(None, "x"), P()), out_specs=P("x"))
    rows, width = 1024, 1024
    compiled = v4.compile(
        mapped, struct(mesh, (rows, 4 * width), P(None, "x")), struct(mesh, (4, width, 4096), P())
    )
    timeline = replay(compiled, mesh)
    assert timeline.chip == TPU_V4.name
    assert timeline.flops == 4 * 2 * rows * width * 4096
    assert timeline.permutes_in_flight_during_dots()
    sent = 3 * rows / 2 * width * 2
    assert timeline.link_bytes["x+"] == timeline.link_bytes["x-"] == sent
    assert {link for link, moved in timeline.link_bytes.items() if moved} == {"x+", "x-"}
    assert timeline.total_seconds >= timeline.flops / TPU_V4.bf16_flops
    assert timeline.total_seconds >= timeline.hbm_bytes / TPU_V4.hbm_bandwidth


@pytest.mark.tpu
def test_an_all_gather_compiled_for_v4(v4: Target) -> None:
    """A plain all-gather over two axes is synchronous, and drives the links of both."""
    mesh = v4.mesh((4, 4, 4), ("x", "y", "z"))
    axes = ("y", "z")

    def blocking(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.all_gather(x, axes, axis=1, tiled=True) @ w

    mapped = jax.shard_map(blocking, mesh=mesh, in_specs=(P(None, axes), P()), out_specs=P(axes))
    compiled = v4.compile(
        mapped, struct(mesh, (512, 4096), P(None, axes)), struct(mesh, (4096, 1024), P())
    )
    timeline = replay(compiled, mesh)
    seconds = 512 * 4096 * 2 * 15 / 16 / (4 * TPU_V4.link_bandwidth) + 4 * TPU_V4.hop_seconds
    assert timeline.exposed_seconds == pytest.approx(seconds)
    assert timeline.communication_seconds == pytest.approx(seconds)
    busy = {link for link, moved in timeline.link_bytes.items() if moved}
    assert busy == {"y+", "y-", "z+", "z-"}
    assert not timeline.permutes_in_flight_during_dots()
