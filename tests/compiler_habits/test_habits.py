"""What docs/compiler.md says of the TPU compiler, H1, H2, ..., asked of the compiler that is installed.

Each test compiles one example twice, as the habit meets it and as the library writes it. A test that
fails says that a habit is gone or has changed: then the page and the code that cites it need a look.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import collective_einsum as ce
from bench.einsum_suite import measure
from bench.einsum_suite.cases import BY_OPTIONS, Case
from collective_einsum.cost.torus import OFFLOADED_ALL_REDUCE
from collective_einsum.ruler.compile import target
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.replay import dot_cycles
from tests.observed_chips import CHIPS, SLICES

pytestmark = pytest.mark.tpu

BF16, F32, I32 = jnp.bfloat16, jnp.float32, jnp.int32
WHOLE, SHARDED = PartitionSpec(), PartitionSpec("x")
Argument = tuple[tuple[int, ...], Any]
FOUR_V4 = SLICES["v4"]


@functools.cache
def slice_mesh(name: str) -> Mesh:
    """All devices of a slice along one axis, x."""
    slice_ = target(name)
    return slice_.mesh((len(slice_.devices),), ("x",))


def compiled(
    function: Callable[..., Any], *arguments: Argument, options: Mapping[str, Any] | None = None
) -> str:
    """The scheduled program; every chip holds each argument whole."""
    return compiled_on(FOUR_V4, function, *arguments, options=options)


def compiled_per_chip(
    function: Callable[..., Any], *arguments: Argument, options: Mapping[str, Any] | None = None
) -> str:
    """As `compiled`, of a function that each chip runs and that may name the axis x."""
    mapped = jax.shard_map(
        function, mesh=slice_mesh(FOUR_V4), in_specs=WHOLE, out_specs=SHARDED, check_vma=False
    )
    return compiled(mapped, *arguments, options=options)


def compiled_on(
    name: str,
    function: Callable[..., Any],
    *arguments: Argument,
    options: Mapping[str, Any] | None = None,
) -> str:
    """As `compiled`, of a function, jitted or not, for a slice by name."""
    placed = NamedSharding(slice_mesh(name), WHOLE)
    shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=placed) for shape, dtype in arguments]
    return target(name).compile(function, *shapes, compiler_options=options or {}).as_text() or ""


def cycles(program: str) -> int:
    """The compiler's estimates of all instructions, a loop's body counted once."""
    return sum(map(int, re.findall(r'"estimated_cycles":"?(\d+)', program)))


def count(program: str, opcode: str) -> int:
    return len(re.findall(rf" {opcode}\(", program))


def weight(layers: int, *shape: int) -> Argument:
    return (layers, *shape), BF16


def scanned(layer: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """The layers of a stack, one after another."""

    def run(x: jax.Array, weights: jax.Array) -> jax.Array:
        return lax.scan(lambda x, w: (layer(x, w), None), x, weights)[0]

    return run


def test_h1_a_dot_of_one_row_is_a_vector_loop() -> None:
    def padded(x: jax.Array, w: jax.Array) -> jax.Array:
        return (lax.optimization_barrier(jnp.broadcast_to(x, (8, 4608))) @ w)[:1]

    shapes = ((1, 4608), BF16), ((4608, 4608), BF16)
    plain, rows = compiled(jnp.matmul, *shapes), compiled(padded, *shapes)
    assert count(plain, "convolution") == 0
    assert count(rows, "convolution") == 1
    assert cycles(plain) > 2.5 * cycles(rows)


@pytest.mark.parametrize("collective", ["all-gather", "all-to-all"])
def test_h2_collectives_are_synchronous_without_options(collective: str) -> None:
    def both(x: jax.Array, a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        if collective == "all-gather":
            return lax.all_gather(x, "x", tiled=True), a @ b
        return lax.all_to_all(x, "x", 0, 0, tiled=True), a @ b

    shapes = ((1024, 2048), BF16), ((1024, 2048), BF16), ((2048, 2048), BF16)
    plain = compiled_per_chip(both, *shapes)
    beside = compiled_per_chip(both, *shapes, options=ce.compiler_options(ce.TPU_V4))
    assert count(plain, collective) == 1
    assert count(plain, f"{collective}-start") == 0
    assert count(beside, collective) == 0
    assert count(beside, f"{collective}-start") == 1


def test_h3_a_slice_with_a_known_start_is_copied() -> None:
    def layer(x: jax.Array, w: jax.Array, hidden: bool) -> jax.Array:
        starts = [jnp.int32(0), jnp.int32(2304)]
        if hidden:
            starts = [lax.optimization_barrier(start) for start in starts]
        return jnp.concatenate(
            [x @ lax.dynamic_slice_in_dim(w, start, 2304, axis=1) for start in starts], axis=1
        )

    shapes = ((512, 4608), BF16), weight(8, 4608, 4608)
    known, hidden = (
        compiled(scanned(functools.partial(layer, hidden=is_hidden)), *shapes)
        for is_hidden in (False, True)
    )
    assert cycles(known) > 2 * cycles(hidden)


def test_h4_a_mask_of_two_dimensions_moves_to_other_lanes() -> None:
    def weighted(p: jax.Array, v: jax.Array, lengths: jax.Array, whole: bool) -> jax.Array:
        if whole:
            present = lax.broadcasted_iota(I32, v.shape, 2) < lengths.reshape(-1, 1, 1, 1)
        else:
            mask = jnp.arange(v.shape[2], dtype=I32)[None] < lengths[:, None]
            present = mask[:, None, :, None]
        return jnp.einsum("bkns,bksd->bknd", p, jnp.where(present, v, jnp.zeros_like(v)))

    shapes = ((16, 1, 8, 2048), BF16), ((16, 1, 2048, 256), BF16), ((16,), I32)
    mask, places = (
        compiled(functools.partial(weighted, whole=whole), *shapes) for whole in (False, True)
    )
    assert cycles(mask) > 1.5 * cycles(places)


def test_h5_a_sum_behind_a_barrier_is_a_pass_of_its_own() -> None:
    def add(x: jax.Array, total: jax.Array, w: jax.Array, barrier: bool) -> jax.Array:
        y = jnp.matmul(x, w, preferred_element_type=F32)
        return (lax.optimization_barrier(y) if barrier else y) + total

    shapes = ((1024, 1152), BF16), ((1024, 4608), F32), ((1152, 4608), BF16)
    fused, apart = (
        compiled(functools.partial(add, barrier=barrier), *shapes) for barrier in (False, True)
    )
    assert cycles(apart) > 1.3 * cycles(fused)


def test_h6_the_next_runs_first_parameter_is_prefetched() -> None:
    def product(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    shapes = ((64, 4608), BF16), ((4608, 4608), BF16)
    options = dict(ce.TPU_V4.no_prefetch_options)
    assert "cross_program_prefetch_index" in compiled(product, *shapes)
    assert "cross_program_prefetch_index" not in compiled(product, *shapes, options=options)


def test_h7_a_weight_of_three_dimensions_is_copied() -> None:
    def of_heads(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.einsum("be,ehd->bhd", x, w).reshape(x.shape)

    x = (64, 4096), BF16
    heads = compiled(scanned(of_heads), x, weight(8, 4096, 16, 256))
    matrix = compiled(scanned(jnp.matmul), x, weight(8, 4096, 4096))
    assert cycles(heads) > 4 * cycles(matrix)


def test_h8_slices_of_a_stack_are_not_prefetched() -> None:
    def layer(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(x @ w, "x")

    def unrolled(x: jax.Array, *weights: jax.Array) -> jax.Array:
        return functools.reduce(layer, weights, x)

    x = (64, 2048), BF16
    stacked = compiled_per_chip(scanned(layer), x, weight(8, 2048, 2048))
    apart = compiled_per_chip(unrolled, x, *[((2048, 2048), BF16)] * 8)
    on_chip = re.compile(r"bf16\[(1,)?2048,2048\]\{[^}]*S\(3\)\}")
    assert not on_chip.search(stacked)
    assert on_chip.search(apart)


def test_h9_all_reduces_side_by_side_become_one() -> None:
    def sums(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
        return lax.psum(a, "x"), lax.psum(b, "x")

    assert count(compiled_per_chip(sums, ((64, 1024), BF16), ((64, 512), BF16)), "all-reduce") == 1


def test_h10_the_same_gather_twice_becomes_one() -> None:
    def gathers(a: jax.Array) -> tuple[jax.Array, jax.Array]:
        whole, again = (lax.all_gather(a, "x", tiled=True) for _ in range(2))
        return whole, jnp.tanh(again)

    assert count(compiled_per_chip(gathers, ((64, 1024), BF16)), "all-gather") == 1


def compiled_on_cube(
    function: Callable[[jax.Array], jax.Array],
    shape: tuple[int, ...],
    before: PartitionSpec,
    after: PartitionSpec,
) -> str:
    """The program of 4x4x4 chips, of a function that each chip runs on its part of [*shape]."""
    cube = target("v4:4x4x4")
    mesh = cube.mesh((4, 4, 4), ("x", "y", "z"))
    x = jax.ShapeDtypeStruct(shape, BF16, sharding=NamedSharding(mesh, before))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=before, out_specs=after, check_vma=False)
    return cube.compile(mapped, x).as_text() or ""


@pytest.mark.parametrize(("columns", "becomes"), [(1152, "all-reduce"), (2560, "reduce-scatter")])
def test_h11_a_scatter_that_cuts_tiles_of_lanes_becomes_an_all_reduce(
    columns: int, becomes: str
) -> None:
    """Rows of 1152 columns of bfloat16 are 4.5 times 512 bytes, those of 2560 are 10 times."""

    def scatter(y: jax.Array) -> jax.Array:
        return lax.psum_scatter(y @ y.T @ y, "x", scatter_dimension=1, tiled=True)

    def of_its_own(y: jax.Array) -> jax.Array:
        blocks = (y @ y.T @ y).reshape(64, 4, columns)
        return lax.psum_scatter(blocks, "x", scatter_dimension=1, tiled=False)

    shape, after = (64, 4 * columns), PartitionSpec(None, "x")
    tiled, own = (compiled_on_cube(f, shape, WHOLE, after) for f in (scatter, of_its_own))
    kinds = ("all-reduce", "reduce-scatter")
    assert [kind for kind in kinds if count(tiled, kind)] == [becomes]
    assert [kind for kind in kinds if count(own, kind)] == ["reduce-scatter"]


def test_h12_a_few_rows_of_an_int8_tile_are_written_by_copying_the_cache() -> None:
    def write(cache: jax.Array, rows: jax.Array, tile: jax.Array) -> jax.Array:
        return lax.dynamic_update_slice(cache, rows, (0, 0, tile * rows.shape[2], 0))

    cache = (32, 1, 2048, 256), jnp.int8
    row, tile = (
        compiled(jax.jit(write, donate_argnums=0), cache, ((32, 1, rows, 256), jnp.int8), ((), I32))
        for rows in (1, 32)
    )
    assert cycles(row) > 10 * cycles(tile)


def test_h13_a_gather_over_three_axes_becomes_an_all_reduce() -> None:
    def gathered(*axes: str) -> str:
        columns = PartitionSpec(None, axes)
        gather = functools.partial(lax.all_gather, axis_name=axes, axis=1, tiled=True)
        return compiled_on_cube(gather, (64, 288 * 4 ** len(axes)), columns, WHOLE)

    three, two = gathered("x", "y", "z"), gathered("y", "z")
    assert (count(three, "all-reduce"), count(three, "all-gather")) == (1, 0)
    assert (count(two, "all-reduce"), count(two, "all-gather")) == (0, 1)


def test_h14_tpu7x_copies_the_weights_of_a_loop_into_taller_tiles() -> None:
    function, shapes = scanned(jnp.matmul), (((64, 4608), BF16), weight(4, 4608, 4608))
    plain, ours = (compiled_on("tpu7x:2x2x1", jit(function), *shapes) for jit in (jax.jit, ce.jit))
    copied = re.compile(r"bf16\[4,4608,4608\]\{2,1,0:T\(16,128\)")
    assert copied.search(plain)
    assert not copied.search(ours)


@pytest.mark.parametrize(("columns", "offloaded"), [(3072, False), (4096, True)])
def test_h15_sparse_cores_leave_small_all_reduces_alone(columns: int, offloaded: bool) -> None:
    """8 rows of bfloat16: 48 and 64 KiB."""

    def summed(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum(x @ w, "x")

    mesh = slice_mesh("tpu7x:2x2x1")
    mapped = jax.shard_map(summed, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE, check_vma=False)
    program = compiled_on("tpu7x:2x2x1", mapped, ((8, 1024), BF16), ((1024, columns), BF16))
    assert ('async_execution_thread="sparsecore"' in program) == offloaded
    assert (8 * columns * 2 >= OFFLOADED_ALL_REDUCE) == offloaded


@pytest.mark.parametrize("queue", [False, True], ids=["one by one", "queue"])
@pytest.mark.parametrize("chip", ["v5p", "v6e", "tpu7x"])
def test_h19_sparse_cores_queue_collectives(chip: str, queue: bool) -> None:
    """Three weights are gathered while other dots compute."""

    def gathered(x: jax.Array, w: jax.Array, *own: jax.Array) -> jax.Array:
        weights = [lax.all_gather(part, "x", axis=0, tiled=True) for part in own]
        for _ in range(6):
            x = x @ w
        for weight in weights:
            x = x @ weight
        return x

    name = SLICES[chip]
    size = len(target(name).devices)
    mapped = jax.shard_map(
        gathered, mesh=slice_mesh(name), in_specs=WHOLE, out_specs=SHARDED, check_vma=False
    )
    own = ((2048 // size, 2048), BF16)
    options = ce.compiler_options(name.partition(":")[0], sparse_cores="queue" if queue else True)
    if chip == "tpu7x" and not queue:
        options["xla_tpu_enable_sparse_core_offload_queuing_in_lhs"] = False
    square = ((2048, 2048), BF16)
    program = compiled_on(name, mapped, square, square, own, own, own, options=options)
    # Where a start has no operands, an update hands them over.
    begins = "update" if "call-update" in program else "start"
    calls = re.findall(rf"%all-gather\S*call-({begins}|done)\S* =", program)
    most = in_flight = 0
    for call in calls:
        in_flight += 1 if call == begins else -1
        most = max(most, in_flight)
    assert len(calls) == 6
    assert most == (3 if queue else 1)


@functools.cache
def ring(name: str, direction: str) -> str:
    """An all-gather's ring over the devices of four chips."""

    def gather(x: jax.Array, w: jax.Array) -> jax.Array:
        return ce.all_gather_einsum(
            "me,ef->mf", x, w, axis_name="x", gather="e", schedule=direction
        )

    slice_, mesh = SLICES[name], slice_mesh(SLICES[name])
    mapped = jax.shard_map(gather, mesh=mesh, in_specs=WHOLE, out_specs=SHARDED, check_vma=False)
    shard = 4608 // mesh.size
    return compiled_on(slice_, mapped, ((512, shard), BF16), ((4608, 4608), BF16))


@pytest.mark.parametrize("name", CHIPS)
def test_h16_v5p_copies_the_second_shard_that_arrives(name: str) -> None:
    """Its dot takes less than that of the first, which reads what arrived from HBM."""

    def second_over_first(direction: str) -> float:
        program = ring(name, direction)
        first, second = (dot_cycles(CHIPS[name], program, place)[0] for place in (1, 2))
        return second / first

    assert (second_over_first("latency") < 0.9) == CHIPS[name].copies_second_shard
    assert second_over_first("unidirectional") >= 0.9


@pytest.mark.parametrize("name", CHIPS)
def test_h17_hops_start_one_dot_or_two_before_they_must_have_arrived(
    name: str, tmp_path: Path
) -> None:
    """In a loop over layers, whose rings are those of the benchmark."""
    target_name = f"{name}:4x4" if name in ("v5e", "v6e") else f"{name}:4x4x4"
    case = Case("gather x, W_out", 512)
    timeline = measure.timeline(
        measure.Task(case, ce.Schedule("ring", "latency"), target_name), tmp_path
    )
    layer = timeline.total_seconds / case.layers
    first = [event for event in timeline.events if event.end < 1.01 * layer]
    dots = [event for event in first if event.kind == "dot"]
    assert len(dots) == 4
    # The first hops go both ways, and what the second one sends is for the fourth dot.
    starts = sorted({event.start for event in first if event.kind == "permute"})
    before = sum(dot.end <= starts[1] for dot in dots)
    assert before == (1 if CHIPS[name].starts_hops_early else 2)


def test_h18_int8_dots_of_v4_read_columns_more_slowly(tmp_path: Path) -> None:
    """Gathered from shards of 288 columns, which "blocking" leaves as lax's gather lays them out."""
    case = Case("gather yz, W_in", 256, "int8")
    tasks = [
        measure.Task(case, schedule, "v4:4x4x4")
        for schedule in (BY_OPTIONS, ce.Schedule("chunked", "async"))
    ]
    rows = dict(measure.measure_all(tasks, tmp_path, 1))
    assert rows[1].total_seconds < 0.95 * rows[0].total_seconds


@pytest.mark.parametrize("name", CHIPS)
def test_h20_weights_arrive_two_collectives_before_their_dot_or_earlier(name: str) -> None:
    """In a chain of matmuls of few rows, each followed by an all-reduce, of twelve arrays."""

    def chain(x: jax.Array, *weights: jax.Array) -> jax.Array:
        return functools.reduce(lambda y, w: lax.psum(y @ w, "x"), weights, x)

    mapped = jax.shard_map(
        chain, mesh=slice_mesh(SLICES[name]), in_specs=WHOLE, out_specs=WHOLE, check_vma=False
    )
    shapes = ((8, 2048), BF16), *[((2048, 2048), BF16)] * 12

    def overlapped(options: Mapping[str, Any]) -> list[int]:
        """The all-reduces that begin while a weight is copied, for each that is."""
        ops = list(hlo.parse(compiled_on(SLICES[name], mapped, *shapes, options=options)).entry)
        places = {op.name: place for place, op in enumerate(ops)}
        sums = [place for place, op in enumerate(ops) if op.opcode.startswith("all-reduce")]
        return [
            sum(places[op.operands[0]] < place < places[op.name] for place in sums)
            for op in ops
            if op.opcode == "copy-done"
        ]

    plain, ahead = overlapped({}), overlapped(dict(CHIPS[name].weights_ahead_options))
    assert max(plain) <= 3 < max(ahead)
    assert sum(ahead) > 1.3 * sum(plain)


@pytest.mark.parametrize(("name", "side"), [("v5e", 8192), ("v6e", 32768)])
def test_h21_an_einsum_of_a_large_sharded_operand_is_a_ring_without_options(
    name: str, side: int
) -> None:
    """Of plain einsums under jit: permutes in place of the all-gather."""
    mesh = slice_mesh(SLICES[name])
    lhs, rhs = (
        jax.ShapeDtypeStruct((side, side), BF16, sharding=NamedSharding(mesh, spec))
        for spec in (PartitionSpec("x"), PartitionSpec(None, "x"))
    )
    columns = NamedSharding(mesh, PartitionSpec(None, "x"))
    lowered = jax.jit(jnp.matmul, out_shardings=columns).lower(lhs, rhs)

    def collectives(options: Mapping[str, Any]) -> tuple[bool, bool]:
        text = lowered.compile(compiler_options=dict(options) or None).as_text() or ""
        gathers = count(text, "all-gather") + count(text, "all-gather-start")
        return bool(count(text, "collective-permute-start")), bool(gathers)

    assert collectives({}) == (True, False)
    assert collectives(dict(CHIPS[name].compiler_options)) == (False, True)
