"""`advise`: what it says a change saves, against the replay of the program with that change made."""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import ruler
from collective_einsum.advise import Advice, advise
from tests.users import run_as_user

pytestmark = pytest.mark.tpu

ROWS, WIDTH = 2048, 4096
SLICE = "v4:2x2x1"
# Without these, a program begins with copies of its first parameters into on-chip memory, more of them
# or fewer, which no other run would wait for.
OPTIONS = dict(ce.TPU_V4.no_prefetch_options)


def columns(x: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ v)
    return lax.psum_scatter(hidden @ w, "y", scatter_dimension=1, tiled=True)


def columns_by_einsum(x: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ v)
    return ce.einsum_reduce_scatter("mk,kn->mn", hidden, w, axis_name="y", scatter="n")


def rows(x: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ v)
    return lax.psum_scatter(hidden @ w, "y", scatter_dimension=0, tiled=True)


def rows_by_einsum(x: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
    hidden = jnp.tanh(x @ v)
    return ce.einsum_reduce_scatter("mk,kn->mn", hidden, w, axis_name="y", scatter="m")


def on_slice(function: Any) -> tuple[Any, ...]:
    """A feedforward of local shards, with its arguments' shapes."""
    mesh = ruler.mesh(SLICE, {"y": 4})
    specs = (P(), P(None, "y"), P("y", None))
    out = P("y", None) if function.__name__.startswith("rows") else P(None, "y")
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)
    shapes = ((ROWS, WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH))
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return mapped, *args


PROGRAMS = {"n": (columns, columns_by_einsum), "m": (rows, rows_by_einsum)}


@functools.cache
def advice(label: str) -> Advice:
    return advise(*on_slice(PROGRAMS[label][0]), target=SLICE, options=OPTIONS)


@pytest.mark.parametrize("label", PROGRAMS)
def test_the_saving_comes_true(label: str) -> None:
    function, changed = PROGRAMS[label]
    said = advice(label)
    (einsum,) = said.worthwhile
    call = f'ce.einsum_reduce_scatter("mk,kn->mn", x, w, axis_name=\'y\', scatter="{label}")'
    assert einsum.call == call
    assert einsum.line is not None
    assert einsum.line.function == function.__name__
    assert einsum.exposed == pytest.approx(said.timeline.exposed_by_op[einsum.name])
    after = ruler.predict(*on_slice(changed), options=OPTIONS)
    saved = said.timeline.total_seconds - after.total_seconds
    assert einsum.saving == pytest.approx(saved, rel=0.2)


def test_it_prints_tables_with_legends_and_a_conclusion() -> None:
    text = str(advice("n"))
    assert max(map(len, text.splitlines())) <= 120
    assert re.search(r"\nas it is +\d", text)
    assert re.search(r"\nreduce-scatter +1 +\d", text)
    assert "So one call of collective_einsum" in text.splitlines()[-1]
    assert repr(advice("n")).startswith("Advice(")


def test_every_set_of_options_is_replayed() -> None:
    mesh = ruler.mesh("v6e:2x2", {"y": 4})

    def apart(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
        everywhere = NamedSharding(mesh, P())
        return (x @ w @ w) @ lax.with_sharding_constraint(v, everywhere)

    args = [
        jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for spec in (P(), P(), P("y", None))
    ]
    said = advise(apart, *args)
    assert [option.name for option in said.options[:3]] == [
        "no windowed einsum",
        "those of ce.jit",
        "SparseCores",
    ]
    # SparseCores gather while two dots compute; no other options let anything do so.
    assert said.best_options is not None
    assert said.best_options.name == "SparseCores"
    assert f"'SparseCores' would save {said.gain(said.best_options):.1%}" in said.conclusion
    assert set(ce.compiler_options("v6e")) < set(ce.compiler_options("v6e", sparse_cores=True))
    assert ce.compiler_options("v4") == ce.compiler_options("v4", sparse_cores=True)


def test_it_says_when_nothing_would_help() -> None:
    mesh = ruler.mesh("v4:2x2x1", {"y": 4})
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("y")))
    said = advise(lambda x: x * 2, x)
    assert not said.einsums
    assert said.best_options is None
    assert "No collective next to a dot" in str(said)
    assert "neither the options nor an einsum" in said.conclusion
    with pytest.raises(ValueError, match="compiled already"):
        advise(jax.jit(lambda x: x).lower(x).compile())  # pyright: ignore[reportArgumentType]


MODULE = """\
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from collective_einsum import ruler


def step():
    mesh = ruler.mesh("v4:2x2x1", {"y": 4})
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("y")))
    return lambda x: x @ x.T, x
"""


def test_the_command_advises(tmp_path: Path) -> None:
    (tmp_path / "yours.py").write_text(MODULE)
    words = ("advise", "yours:step", "--target", "v4:2x2x1")
    run = run_as_user([sys.executable, "-m", "collective_einsum.ruler", *words], tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("So ")
