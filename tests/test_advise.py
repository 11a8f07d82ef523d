"""`advise`: what it says a change saves, against the replay of a program changed by hand."""

from __future__ import annotations

import dataclasses
import functools
import re
import sys
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import ruler
from collective_einsum.advise import Advice, advise, option_sets
from tests.users import run_as_user

pytestmark = pytest.mark.tpu

ROWS, WIDTH = 2048, 4096


def layer(x: jax.Array, w: jax.Array) -> jax.Array:
    gathered = lax.all_gather(x, "y", axis=1, tiled=True)
    return lax.psum_scatter(gathered @ jnp.tanh(w), "y", scatter_dimension=1, tiled=True)


def layer_by_hand(x: jax.Array, w: jax.Array) -> jax.Array:
    out = ce.all_gather_einsum("mk,kn->mn", x, jnp.tanh(w), axis_name="y", gather="k")
    return lax.psum_scatter(out, "y", scatter_dimension=1, tiled=True)


def on_slice(function: Any, target: str) -> tuple[Any, ...]:
    """A layer of local shards, with its arguments' shapes."""
    mesh = ruler.mesh(target, {"y": 4})
    specs = (P(None, "y"), P(None, "y"))
    mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(None, "y"))
    shapes = ((ROWS, WIDTH), (WIDTH, 4 * WIDTH))
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in zip(shapes, specs, strict=True)
    ]
    return mapped, *args


@functools.cache
def advice() -> Advice:
    return advise(*on_slice(layer, "v4:2x2x1"), target="v4:2x2x1", tries=1)


def test_a_loss_comes_true_and_is_not_advised() -> None:
    said = advice()
    tried, other = said.einsums
    call = "ce.all_gather_einsum(\"ab,bd->ad\", x, w, axis_name='y', gather='b')"
    assert tried.calls == (call,)
    assert tried.line is not None
    assert (tried.line.function, tried.line.file) == ("layer", __file__)
    after = ruler.predict(*on_slice(layer_by_hand, "v4:2x2x1"))
    saved = said.timeline.total_seconds - after.total_seconds
    # The tanh is computed again for every shard that arrives.
    assert saved < 0
    assert tried.saving == pytest.approx(saved, rel=0.02)
    assert said.advised == ()
    assert said.changed is None
    assert "nothing that was tried would help" in said.conclusion
    assert (other.collective, other.saving) == ("reduce-scatter", None)
    assert other.reason == "not tried: others wait longer"


def test_where_auto_is_blocking_nothing_is_tried() -> None:
    """A scatter of few rows: hops take longer than the dots that could overlap them."""

    def few_rows(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.psum_scatter(x[:64] @ w[:1024], "y", scatter_dimension=1, tiled=True)

    (einsum,) = advise(*on_slice(few_rows, "v4:2x2x1"), target="v4:2x2x1", tries=1).einsums
    assert (einsum.collective, einsum.saving) == ("reduce-scatter", None)
    assert einsum.reason == '"auto" overlaps nothing there: it is blocking'


def of_global_arrays(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def global_arrays() -> tuple[jax.sharding.Mesh, list[jax.ShapeDtypeStruct]]:
    mesh = ruler.mesh("v5e:2x2", {"y": 4})
    return mesh, [
        jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for spec in (P("y"), P(None, "y"))
    ]


def test_no_more_lines_are_tried_than_are_asked_for() -> None:
    said = advise(of_global_arrays, *global_arrays()[1], tries=0)
    assert said.advised == ()
    (einsum,) = said.einsums
    assert (einsum.saving, einsum.reason) == (None, "not tried: others wait longer")


def test_the_saving_of_a_dot_of_global_arrays_comes_true() -> None:
    mesh, args = global_arrays()
    said = advise(of_global_arrays, *args)
    (einsum,) = said.advised

    def by_hand(x: jax.Array, w: jax.Array) -> jax.Array:
        specs = (P("y"), P(None, "y"))
        return ce.einsum("mk,kn->mn", x, w, mesh=mesh, in_specs=specs, out_sharding=P("y"))

    after = ruler.predict(by_hand, *args)
    saved = said.timeline.total_seconds - after.total_seconds
    assert saved > 0
    assert einsum.saving == said.saving == pytest.approx(saved, rel=0.02)
    text = str(said)
    assert max(map(len, text.splitlines())) <= 120
    assert re.search(r"\nas it is +\d", text)
    assert re.search(r"\nall-gather +1 +\d", text)
    assert einsum.calls[0] in " ".join(text.split())
    assert "one call of collective_einsum would save" in said.conclusion
    assert repr(said).startswith("Advice(")


def test_sparse_cores_are_tried() -> None:
    mesh = ruler.mesh("v6e:2x2", {"y": 4})

    def apart(x: jax.Array, w: jax.Array, v: jax.Array) -> jax.Array:
        everywhere = NamedSharding(mesh, P())
        return (x @ w @ w) @ lax.with_sharding_constraint(v, everywhere)

    args = [
        jax.ShapeDtypeStruct((2048, 2048), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for spec in (P(), P(), P("y", None))
    ]
    sets = option_sets(ce.TPU_V6E)
    given = {**sets["no windowed einsum"], **sets["those of ce.jit"], **sets["weights ahead"]}
    said = advise(jax.jit(apart).lower(*args), options=given)
    # SparseCores gather while two dots compute.
    assert said.best_options is not None
    assert [option.name for option in said.options] == ["SparseCores", "queue of SparseCores"]
    assert said.best_options.name == "SparseCores"
    assert f"'SparseCores' would save {said.gain(said.best_options):.1%}" in said.conclusion
    assert {einsum.reason for einsum in said.einsums} <= {
        "what is lowered cannot be changed; give the function with its arguments"
    }
    assert set(ce.compiler_options("v6e")) < set(ce.compiler_options("v6e", sparse_cores=True))
    assert ce.compiler_options("v4") == ce.compiler_options("v4", sparse_cores=True)


def test_a_queue_of_sparse_cores_is_a_set_of_options() -> None:
    queue = ce.compiler_options("v6e", sparse_cores="queue")
    assert set(ce.compiler_options("v6e", sparse_cores=True)) < set(queue)
    assert queue == dict(ce.TPU_V6E.with_sparse_core_queue().compiler_options)
    for chip in ("v4", "v5e", "v7x"):
        assert ce.compiler_options(chip, sparse_cores="queue") == ce.compiler_options(chip)
    # Schedules are chosen as without it.
    plain, queued = (
        dataclasses.replace(chip, compiler_options=(), sparse_core_queue_options=())
        for chip in (ce.TPU_V5P, ce.TPU_V5P.with_sparse_core_queue())
    )
    assert queued == dataclasses.replace(plain, sparse_core_options=())
    with pytest.raises(ValueError, match="'all'; give False, True or 'queue'"):
        ce.compiler_options("v6e", sparse_cores=cast(Any, "all"))


def test_mistakes_are_refused_before_compiling() -> None:
    with pytest.raises(ValueError, match="give 0 or more"):
        advise(*on_slice(layer, "v4:2x2x1"), tries=-1)
    with pytest.raises(ValueError, match="compiled already"):
        advise(jax.jit(lambda x: x).lower(1.0).compile())  # pyright: ignore[reportArgumentType]


MODULE = """\
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from collective_einsum import ruler


def step():
    mesh = ruler.mesh("v4:2x2x1", {"y": 4})
    x = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("y")))
    return lambda x: x * 2, x
"""


def test_the_command_says_when_nothing_would_help(tmp_path: Path) -> None:
    (tmp_path / "yours.py").write_text(MODULE)
    words = ("advise", "yours:step", "--target", "v4:2x2x1")
    run = run_as_user([sys.executable, "-m", "collective_einsum.ruler", *words], tmp_path)
    assert run.returncode == 0, run.stderr
    assert "No collective next to a dot" in run.stdout
    assert "\nSo nothing that was tried would help" in run.stdout
