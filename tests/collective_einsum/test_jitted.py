"""`ce.jit` is `jax.jit`, under the options of the chip that a program is compiled for."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import jitted
from collective_einsum.chips import compile_context as compiling
from collective_einsum.chips import traced_chip
from collective_einsum.ruler.compile.targets import target

# An option that every compiler of jaxlib knows.
CPU = dataclasses.replace(ce.TPU_V4, compiler_options=(("xla_cpu_enable_fast_math", False),))
JITS = {"plain": ce.jit, "with options": functools.partial(ce.jit, chip=CPU)}
by_jit = pytest.mark.parametrize("jit", JITS.values(), ids=JITS)


def square(x: Any, scale: Any = 1.0) -> Any:
    """A square, for jit."""
    return x * x * scale


def options_of(lowered: Any) -> dict[str, Any]:
    return dict(lowered._lowering._compiler_options_kvs or ())


@by_jit
def test_it_has_what_jax_jit_s_has(jit: Any) -> None:
    ours, theirs = jit(square), jax.jit(square)
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public >= {"lower", "trace", "eval_shape", "clear_cache"}
    assert public <= set(dir(ours))
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__wrapped__"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert inspect.signature(ours) == inspect.signature(square)
    assert isinstance(ours, jax.stages.Wrapped)
    assert weakref.ref(ours)() is ours
    assert hash(ours) != hash(jit(square))
    assert copy.deepcopy(ours)(2.0) == 4
    assert "square" in repr(ours)


@by_jit
def test_stages(jit: Any) -> None:
    run, x = jit(square), jnp.float32(3)
    shape = run.eval_shape(x)
    assert (shape.shape, shape.dtype) == ((), jnp.float32)
    assert run.trace(x).lower().compile()(x) == 9
    assert run.lower(x, scale=jnp.float32(2)).compile()(x, scale=jnp.float32(2)) == 18
    assert "jit_square" in run.lower(x).as_text()
    assert run(x) == 9
    assert run._cache_size() == 1
    run.clear_cache()
    assert run._cache_size() == 0
    assert run(x) == 9
    exported = jax.export.export(run)(x)
    assert exported.call(x) == 9


class Model:
    """Methods that are jitted, by all the ways to write a decorator."""

    def __init__(self, factor: float) -> None:
        self.factor = jnp.float32(factor)

    @functools.partial(ce.jit, static_argnums=0)
    def by_partial(self, x: Any) -> Any:
        """Doubled or so."""
        return self.factor * x

    @ce.jit(static_argnames=("self", "times"), chip=CPU)
    def by_factory(self, x: Any, *, times: int) -> Any:
        return self.factor * x * times

    @staticmethod
    @ce.jit
    def static(x: Any) -> Any:
        return x + 1

    @classmethod
    @ce.jit(static_argnums=0)
    def of_class(cls, x: Any) -> Any:
        return cls(2).factor + x


def test_methods() -> None:
    model, other, x = Model(2), Model(5), jnp.float32(3)
    assert (model.by_partial(x), other.by_partial(x)) == (6, 15)
    assert model.by_factory(x, times=2) == 12
    assert (Model.static(x), model.static(x)) == (4, 4)
    assert (Model.of_class(x), model.of_class(x)) == (5, 5)
    assert Model.by_partial(other, x) == 15
    assert Model.by_partial.__doc__ == "Doubled or so."
    assert model.by_partial.lower(model, x).compile()(x) == 6


@by_jit
def test_arguments_of_jit(jit: Any) -> None:
    power = jit(lambda x, n: x**n, static_argnums=1)
    assert power(jnp.float32(3), 2) == 9
    decorated = jit(donate_argnums=0)(lambda x, y: x + y)
    given = jnp.ones(8)
    assert decorated(given, jnp.ones(8)).tolist() == [2] * 8
    assert given.is_deleted()
    sharded = NamedSharding(jax.make_mesh((4,), "x"), P("x"))
    assert jit(square, out_shardings=sharded)(np.ones(8, np.float32)).sharding == sharded
    assert jit(square, in_shardings=(sharded,))(np.ones(8, np.float32)).tolist() == [1] * 8
    assert jit(functools.partial(square, scale=jnp.float32(2)))(jnp.float32(3)) == 18
    assert jit(functools.partial(square)).__name__ == "square"
    with pytest.raises(TypeError, match="no_such_argument"):
        jit(square, no_such_argument=True)
    with pytest.raises(TypeError, match="callable"):
        jit(None)


def scanned(run: Any, x: Any) -> Any:
    return jax.lax.scan(lambda c, _: (run(c), c), x, length=2)[0]


@by_jit
@pytest.mark.parametrize(
    ("transformed", "want"),
    [
        (lambda run, x: jax.grad(run)(x), 6),
        (lambda run, x: jax.jacrev(jax.jacfwd(run))(x), 2),
        (lambda run, x: jax.grad(jax.grad(run))(x), 2),
        (lambda run, x: jax.jit(jax.vjp(run, x)[1])(x)[0], 18),
        (lambda run, x: jax.jit(jax.linearize(run, x)[1])(x), 18),
        (lambda run, x: jax.grad(jax.checkpoint(run))(x), 6),
        (lambda run, x: jax.vmap(run)(jnp.full(3, x)).sum(), 27),
        (lambda run, x: jax.vmap(jax.grad(run))(jnp.full(3, x)).sum(), 18),
        (lambda run, x: jax.jit(lambda x: run(x) + run(x))(x), 18),
        (lambda run, x: jax.make_jaxpr(run)(x).jaxpr and run(x), 9),
        (scanned, 81),
        (lambda run, x: run(run(x)), 81),
    ],
)
def test_transformations(jit: Any, transformed: Callable[..., Any], want: float) -> None:
    x = jnp.float32(3)
    assert transformed(jit(square), x) == want
    assert transformed(jit(jit(square)), x) == want
    with jax.disable_jit():
        assert transformed(jit(square), x) == want


def test_within_a_shard_map_and_another_thread(mesh_of: Any) -> None:
    mesh, run = mesh_of((4,), "x"), ce.jit(square, chip=CPU)
    mapped = jax.shard_map(run, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert mapped(jnp.full(4, 3.0)).tolist() == [9] * 4
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run(jnp.float32(3))))
    thread.start()
    thread.join()
    assert found == [9]


def test_a_decorator_starts_no_devices() -> None:
    # As jax.jit's: a module of jitted functions can be imported before the processes are set up.
    run = ce.jit(square)
    assert run._by_kind == {}


SLICES = {"v4:2x2x1": ce.TPU_V4, "v5e:2x2": ce.TPU_V5E, "v6e:2x2": ce.TPU_V6E}


@pytest.mark.tpu
@pytest.mark.parametrize("name", SLICES)
def test_options_are_those_of_what_it_is_compiled_for(name: str) -> None:
    devices, options = target(name).devices, ce.compiler_options(SLICES[name])
    mesh = Mesh(devices, "x", axis_types=(jax.sharding.AxisType.Auto,))
    there = NamedSharding(mesh, P("x"))
    shape = (8 * len(devices),)
    plain = jax.ShapeDtypeStruct(shape, jnp.float32)
    placed = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=there)
    mapped = jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    seen: list[Any] = []

    def look(x: Any, y: Any = None) -> Any:
        seen.append((compiling.by_options(), traced_chip().name))
        return x

    assert options
    assert options_of(ce.jit(look).lower(placed)) == options
    assert options_of(ce.jit(look).trace({"x": placed}, y=plain).lower()) == options
    assert options_of(ce.jit(look, in_shardings=(there,)).lower(plain)) == options
    assert options_of(ce.jit(look, out_shardings=there).lower(plain)) == options
    assert (
        options_of(ce.jit(lambda x: {"y": x}, out_shardings={"y": there}).lower(plain)) == options
    )
    with jax.set_mesh(mesh):
        assert options_of(ce.jit(look).lower(plain)) == options
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        assert options_of(ce.jit(look).lower(placed)) == options
    assert set(seen) == {(True, SLICES[name].name)}
    assert options_of(ce.jit(mapped).lower(plain)) == options
    assert options_of(ce.jit(lambda x: jax.jit(mapped)(x)).lower(plain)) == options
    # One that is named comes first, by name too.
    named = ce.jit(look, chip="v5p").lower(placed)
    assert options_of(named) == ce.compiler_options("TPU v5p")
    assert seen[-1] == (True, "TPU v5p")
    # A caller's option replaces the chip's.
    windowed = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "0"}
    assert windowed.keys() <= options.keys()
    kept = ce.jit(look, compiler_options=windowed).lower(placed)
    assert options_of(kept) == {**options, **windowed}


@pytest.mark.tpu
def test_of_several_kinds_or_none_the_devices_count() -> None:
    v4, v5e = (
        NamedSharding(Mesh(target(name).devices, "x"), P("x")) for name in ("v4:2x2x1", "v5e:2x2")
    )
    run = ce.jit(square)
    one, other, none = (
        jax.ShapeDtypeStruct((8,), jnp.float32, sharding=each) for each in (v4, v5e, None)
    )
    assert run._known_kind((one, other), {}) is None
    assert run._known_kind((none, 1.0, "word", None), {}) is None
    assert options_of(run.lower(none)) == {}
    # What is nowhere yet goes where the others are.
    committed = jax.device_put(jnp.ones(8), jax.devices()[0])
    assert run._known_kind((none, jnp.ones(8)), {}) is None
    assert run._known_kind((jnp.ones(8), committed), {}) == "cpu"


@pytest.mark.tpu
def test_a_compiled_program_has_its_options() -> None:
    mesh = Mesh(target("v4:2x2x1").devices, "x", axis_types=(jax.sharding.AxisType.Auto,))
    x, w = (
        jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=NamedSharding(mesh, P("x")))
        for _ in range(2)
    )

    def gathers(x: Any, w: Any) -> Any:
        return ce.all_gather(w, "x"), x @ x.T

    mapped = jax.shard_map(
        gathers, mesh=mesh, in_specs=P("x"), out_specs=(P(), P("x")), check_vma=False
    )
    assert "all-gather-start" in (ce.jit(mapped).lower(x, w).compile().as_text() or "")


def test_emulated_devices_stand_in_for_a_named_tpu(mesh_of: Any) -> None:
    # Schedules are as there; options that the CPU's compiler does not know are left out.
    seen: list[bool] = []

    def look(x: Any) -> Any:
        seen.append(compiling.by_options())
        return x * x

    for chip in ("v4", ce.TPU_V5E, "h100"):
        assert ce.jit(look, chip=chip)(jnp.float32(3)) == 9
        assert ce.jit(look, chip=chip).lower(jnp.float32(3)).compile()(jnp.float32(3)) == 9
    assert seen == [True, True, True, True, False, False]
    mesh = mesh_of((4,), "x")
    mapped = jax.shard_map(look, mesh=mesh, in_specs=P("x"), out_specs=P("x"))
    assert ce.jit(mapped, chip="v4").lower(jnp.ones(8)).compile()(jnp.ones(8)).tolist() == [1] * 8


@pytest.mark.parametrize(
    "around",
    [
        jax.jit,
        jax.grad,
        lambda f: lambda x: jax.vmap(f, axis_size=1)(x[None])[0],
        lambda f: jax.shard_map(f, mesh=jax.make_mesh((1,), "x"), in_specs=P(), out_specs=P()),
    ],
    ids=["jit", "grad", "vmap", "shard_map"],
)
def test_the_first_call_may_be_within_a_transformation(around: Any) -> None:
    # Inside, the options are those of what is around; at the top level they count afterwards.
    jitted._trace_state.cache_clear()
    seen: list[bool] = []

    @functools.partial(ce.jit, chip="v4")
    def look(x: Any) -> Any:
        seen.append(compiling.by_options())
        return x * x

    around(look)(jnp.float32(3))
    assert seen.pop() is False
    look(jnp.ones(2))
    assert seen.pop() is True


def test_a_named_chip_is_whose_schedules_are_chosen(mesh_of: Any) -> None:
    mesh = mesh_of((4,), "x")

    def gather(x: Any) -> Any:
        return ce.all_gather(x, "x")

    mapped = jax.shard_map(gather, mesh=mesh, in_specs=P("x"), out_specs=P(), check_vma=False)
    x = jnp.ones((8, 8))
    for jit, chip, rings in ((jax.jit, None, True), (ce.jit, "v4", True), (ce.jit, "h100", False)):
        run = jit(mapped) if chip is None else ce.jit(mapped, chip=chip)
        nested = jax.jit(lambda x, run=run: run(x)).lower(x).as_text()
        assert ("collective_permute" in nested) == rings
    assert "collective_permute" not in ce.jit(mapped, chip="h100").lower(x).as_text()


@pytest.mark.parametrize("name", ["a100", 4])
def test_a_chip_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(ValueError, match="chip="):
        ce.jit(square, chip=name)
    with pytest.raises(ValueError, match="chip="):
        ce.compiler_options(name)
