"""Compiler options: which a chip has, how they reach the compiler, and what "auto" makes of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.chips import compile_context as compiling
from collective_einsum.chips import traced_chip
from collective_einsum.ruler.compile.targets import Target, target
from collective_einsum.ruler.replay.simulation import replay

# An option that every compiler of jaxlib knows.
CPU = dataclasses.replace(ce.TPU_V4, compiler_options=(("xla_cpu_enable_fast_math", False),))


@pytest.fixture(scope="module")
def v4() -> Target:
    return target("v4:4x4x4")


def test_options_are_the_chips() -> None:
    assert ce.compiler_options(ce.TPU_V4)["xla_enable_async_all_gather"] is True
    assert ce.compiler_options(ce.H100) == {}
    # The emulated devices stand for a v4, but their compiler knows none of its options.
    assert ce.compiler_options() == {}


def test_what_is_traced_knows_its_options() -> None:
    seen: list[bool] = []

    def look(x: Any) -> Any:
        seen.append(compiling.by_options())
        return x + 1

    alone = ce.jit(look, chip=CPU)
    assert alone(1.0) == 2.0
    assert seen == [True]
    # The options of an outer jit count, which has none.
    assert jax.jit(lambda x: alone(x) * 2)(jnp.ones(3)).tolist() == [4.0] * 3
    assert seen == [True, False]
    assert jax.eval_shape(alone, jnp.ones(3)).shape == (3,)
    assert not compiling.by_options()


def test_options_reach_the_compiler() -> None:
    wrong = dataclasses.replace(CPU, compiler_options=(("xla_no_such_option", True),))
    with pytest.raises(Exception, match="xla_no_such_option"):
        ce.jit(jnp.sin, chip=wrong)(1.0)
    with pytest.raises(Exception, match="xla_no_such_option"):
        ce.jit(jnp.sin, chip=wrong).lower(1.0).compile()
    with pytest.raises(Exception, match="xla_another_option"):
        ce.jit(jnp.sin, chip=CPU, compiler_options={"xla_another_option": True})(1.0)


def test_arguments_of_jit_pass_through() -> None:
    def power(x: Any, n: int, *, negative: bool = False) -> Any:
        return -(x**n) if negative else x**n

    run = ce.jit(power, chip=CPU, static_argnames=("n", "negative"))
    assert run(jnp.float32(3), n=2, negative=True) == -9
    assert run.lower(jnp.float32(3), n=2).compile()(jnp.float32(3)) == 9
    assert run.__name__ == "power"


def test_auto_goes_directly_only_where_that_is_asynchronous() -> None:
    lhs, rhs = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((512, 4608), (4608, 4608)))

    def chosen(chip: ce.Chip, overlap_seconds: float) -> ce.Choice:
        return ce.choose_schedule(
            "mk,kn->mn",
            lhs,
            rhs,
            axis_name="x",
            scatter="m",
            axis_size=4,
            chip=chip,
            overlap_seconds=overlap_seconds,
        )

    plain, told = ce.TPU_V4, ce.TPU_V4.under_options()
    assert all(row.schedule.direction != "async" for row in chosen(plain, 1.0).rows)
    found = chosen(told, 1.0)
    assert found.schedule == ce.Schedule("chunked", "async")
    direct = found.rows[0]
    assert direct.communication > 0
    assert direct.exposed == 0
    # Nothing beside it: its more bytes are all exposed.
    alone = next(row for row in chosen(told, 0.0).rows if row.schedule == direct.schedule)
    assert alone.exposed == pytest.approx(direct.communication)


@pytest.mark.parametrize(("chip", "asynchronous"), [("TPU7x", True), ("TPU v5p", False)])
def test_blocking_overlaps_where_lax_s_collectives_are_asynchronous(
    chip: str, asynchronous: bool
) -> None:
    lhs, rhs = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((256, 4608), (4608, 2304)))

    def blocking(
        count: int, overlap_seconds: float = 0.0, *, gather: bool = False
    ) -> tuple[float, float]:
        choice = ce.choose_schedule(
            "mk,kn->mn",
            lhs,
            [rhs] * count,
            axis_name="x",
            gather="m" if gather else None,
            scatter=None if gather else "m",
            axis_size=4,
            chip=chip,
            overlap_seconds=overlap_seconds,
        )
        row = next(row for row in choice.rows if row.schedule.kind == "blocking")
        return row.exposed, row.communication

    (exposed, sent), (last, one) = blocking(2), blocking(1)
    assert last == one
    # The first scatter overlaps the second dot, which takes longer than its bytes do; replayed by libtpu
    # 0.0.50.1 on tpu7x:4x4x4, 22.8 us of 32.6 are exposed.
    assert exposed == pytest.approx(one if asynchronous else sent)
    assert (blocking(1, 1.0)[0] == 0) is asynchronous
    assert (blocking(1, 1.0, gather=True)[0] == 0) is asynchronous
    assert blocking(1, 1e-6)[0] == pytest.approx(one - (1e-6 if asynchronous else 0))


def test_the_mesh_s_chip_is_as_its_program_is_compiled(mesh_of: Any) -> None:
    seen: list[tuple[str, ...]] = []

    def look(x: Any) -> Any:
        seen.append(traced_chip().asynchronous)
        return ce.all_gather(x, "x")

    mesh = mesh_of((4,), "x")
    mapped = jax.shard_map(look, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    with compiling.knowing_options():
        text = jax.jit(mapped).lower(jnp.ones(8)).as_text()
    assert seen[-1] == ce.TPU_V4.asynchronous_by_options
    assert "all_gather" in text
    assert "collective_permute" not in text
    text = jax.jit(mapped).lower(jnp.ones(8)).as_text()
    assert seen[-1] == ()
    assert "collective_permute" in text


@pytest.mark.tpu
def test_collectives_stand_beside_dots_under_options(v4: Target) -> None:
    # On v4 lax's all-gather and all-to-all are synchronous; under its options they are not.
    mesh = v4.mesh((4, 4, 4), ("x", "y", "z"))
    rows, width = 2048, 4608

    def program(x: Any, w: Any) -> Any:
        up, gate = ce.all_gather_einsum_reduce_scatter(
            "mk,kn->mn",
            x,
            [w, w + 1],
            gather_axis_name=("y", "z"),
            gather="m",
            scatter_axis_name="x",
            scatter="m",
            schedule="async",
        )
        return up * gate

    specs = (P(("y", "z"), "x"), P("x", ("y", "z")))
    mapped = jax.shard_map(
        program, mesh=mesh, in_specs=specs, out_specs=P("x", ("y", "z")), check_vma=False
    )
    shapes = ((rows, 4 * width), (4 * width, 16 * width))
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    hidden = [
        replay(function.lower(*args).compile(), mesh).hidden_fraction
        for function in (jax.jit(mapped), ce.jit(mapped, chip=ce.TPU_V4))
    ]
    # Of three collectives, the all-to-all of the first result.
    assert hidden[0] == 0, hidden
    assert hidden[1] > 0.25, hidden


@pytest.mark.tpu
@pytest.mark.parametrize("name", ["v4:4x4x4", "v5e:4x4"])
@pytest.mark.parametrize(
    ("gather", "schedule", "least"),
    [
        # Each piece of all shards beside the dots of the one before, the first beside the own dot.
        ("n", ce.Schedule("chunked", "async", chunks=3, label="n"), 0.8),
        # A quarter of the rows is waited for.
        ("k", ce.Schedule("chunked", "async", chunks=(1, 3), label="m"), 0.6),
    ],
    ids=str,
)
def test_parts_are_gathered_beside_dots(
    name: str, gather: str, schedule: ce.Schedule, least: float
) -> None:
    slice_ = target(name)
    shape = tuple(map(int, name.partition(":")[2].split("x")))
    mesh = slice_.mesh(shape, tuple("xyz"[: len(shape)]))
    chip = ce.chip_for(mesh.devices.flat[0].device_kind)
    rows, width = 2048, 4608

    def program(x: Any, w: Any) -> Any:
        return ce.all_gather_einsum(
            "mk,kn->mn", x, w, axis_name="x", gather=gather, schedule=schedule
        )

    specs = (P(), P(None, "x")) if gather == "n" else (P(None, "x"), P())
    mapped = jax.shard_map(program, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=False)
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, spec))
        for shape, spec in zip(((rows, width), (width, width)), specs, strict=True)
    ]
    found = replay(ce.jit(mapped, chip=chip).lower(*args).compile(), mesh)
    # On v5e communication takes longer than the dots: less can be hidden.
    assert found.hidden_fraction > (least if chip is ce.TPU_V4 else 0.3), str(found)


def test_direct_sums_once(mesh_of: Any) -> None:
    # Blocks are summed where they arrive, in 32 bits: one rounding, whatever the number of devices.
    mesh = mesh_of((8,), "x")
    x = jax.random.normal(jax.random.key(0), (8, 16, 24), jnp.bfloat16)

    def run(x: Any) -> Any:
        return ce.reduce_scatter(x[0], "x", schedule="async")

    y = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P("x")))(x)
    expected = x.astype(jnp.float32).sum(0).astype(jnp.bfloat16)
    np.testing.assert_array_equal(y, expected)
