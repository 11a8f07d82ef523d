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
from collective_einsum.ruler.replay.simulation import replay, replay_module

from .schedules import (
    BACKWARD,
    CHIP,
    FORWARD,
    GROUPS,
    ON_CHIP,
    RING,
    US,
    done,
    dot,
    module,
    permute,
    run,
)


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


def test_notes_name_what_was_assumed() -> None:
    timeline = run(f'%k = {ON_CHIP} custom-call(%w), custom_call_target="mine"')
    assert timeline.total_seconds == pytest.approx(100 * US)
    assert timeline.notes[0].startswith(
        "1 op (mine) that the compiler gives no estimate of; charged the"
    )
    assert timeline.notes[0] in " ".join(str(timeline).split())


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
    seconds += TPU_V4.collective_seconds
    assert timeline.exposed_seconds == pytest.approx(seconds)
    assert timeline.communication_seconds == pytest.approx(seconds)
    busy = {link for link, moved in timeline.link_bytes.items() if moved}
    assert busy == {"y+", "y-", "z+", "z-"}
    assert not timeline.permutes_in_flight_during_dots()


OFFLOADED = """%gather (g: s8[100]) -> s8[400] {
  %g = s8[100]{0:S(1)} parameter(0)
  ROOT %ag = s8[400]{0:S(1)} all-gather(%g), replica_groups={{0,1,2,3}}, dimensions={0}
}, execution_thread="sparsecore"

%format (f: s8[1000]) -> s8[1000] {
  %f = s8[1000]{0} parameter(0)
  ROOT %fc = s8[1000]{0} copy(%f)
}, execution_thread="sparsecore"

"""
THREAD = 'async_execution_thread="sparsecore"'
GATHERED = "((s8[100]{0:S(1)}), s8[400]{0:S(1)}, u32[]{:S(8)})"
COPIED = "((s8[1000]{0}), s8[1000]{0}, u32[]{:S(8)})"
EMPTY = "((), (), (s32[1]{0:S(2)}))"
# An all-gather that SparseCores run while a dot computes: as libtpu 0.0.42.1 and as 0.0.50.1 write it.
FORMS = {
    "call": [
        '%begin = s8[100]{0:S(1)} custom-call(%p), custom_call_target="PrepareAsyncCallStart"',
        f"%ag-start = {GATHERED} call-start(%begin), {THREAD}, to_apply=%gather",
        dot("d", 60),
        "%ag-done = s8[400]{0:S(1)} call-done(%ag-start)",
    ],
    "call with update": [
        f"%ag-start = {EMPTY} call-start(), {THREAD}, to_apply=%gather",
        f"%ag-update = {GATHERED} call-update(%ag-start, %p)",
        dot("d", 60),
        "%ag-done = s8[400]{0:S(1)} call-done(%ag-update)",
    ],
    "custom call with update": [
        f"%ag-start = {EMPTY} custom-call-start(), {THREAD}, called_computations={{%gather}}",
        f"%ag-update = {GATHERED} custom-call-update(%ag-start, %p)",
        dot("d", 60),
        "%ag-done = s8[400]{0:S(1)} custom-call-done(%ag-update)",
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_collectives_of_sparse_cores_overlap_with_compute(form: str) -> None:
    chip = dataclasses.replace(CHIP, offload_seconds=7 * US)
    scheduled = module("\n".join(FORMS[form]), OFFLOADED)
    timeline = replay_module(scheduled, RING, chip)
    # 300 bytes of the others by two links, two hops, and the fixed cost; the dot runs for 60 us of them.
    assert timeline.communication_seconds == pytest.approx((150 + 2 + 7) * US)
    assert timeline.total_seconds == pytest.approx((150 + 2 + 7) * US)
    assert timeline.exposed_seconds == pytest.approx((150 + 2 + 7 - 60) * US)


@pytest.mark.parametrize("queue", [False, True], ids=["side by side", "queue"])
def test_sparse_cores_gather_side_by_side_or_one_after_another(queue: bool) -> None:
    lines = []
    for name in ("a", "b"):
        lines += [
            f"%{name}-start = {EMPTY} call-start(), {THREAD}, to_apply=%gather",
            f"%{name}-update = {GATHERED} call-update(%{name}-start, %p)",
        ]
    lines += [
        dot("d", 160),
        *(f"%{n}-done = s8[400]{{0:S(1)}} call-done(%{n}-update)" for n in "ab"),
    ]
    chip = dataclasses.replace(CHIP, sparse_cores_queue=queue)
    timeline = replay_module(module("\n".join(lines), OFFLOADED), RING, chip)
    # Alone, each takes 150 us, and its two hops 2.
    assert timeline.total_seconds == pytest.approx((150 + 150 + 2) * US)
    # The last byte arrives at the same time; the dot overlaps with 160 us.
    assert timeline.exposed_seconds == pytest.approx(142 * US)
    sent = {event.name: event.start for event in timeline.events if event.row == "x+"}
    assert sent == pytest.approx({"a-update": 0.0, "b-update": 150 * US if queue else 0.0})


def test_sparse_cores_copy_while_a_dot_computes() -> None:
    lines = [
        f"%c-start = {EMPTY} call-start(), {THREAD}, to_apply=%format",
        f"%c-update = {COPIED} call-update(%c-start, %w)",
        dot("d", 60),
        "%c-done = s8[1000]{0} call-done(%c-update)",
    ]
    timeline = replay_module(module("\n".join(lines), OFFLOADED), RING, CHIP)
    # 1000 bytes are read and as many written, at ten a microsecond.
    assert timeline.total_seconds == pytest.approx(200 * US)
    assert timeline.dma_bytes == 2000
    assert timeline.dma_stall_by_op == {"c-update": pytest.approx(140 * US)}
