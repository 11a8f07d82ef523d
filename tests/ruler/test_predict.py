"""Any program on a slice: functions, what lowering and compiling gave, and texts."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import ruler
from collective_einsum.ruler.replay import Timeline
from tests.users import run_as_user

pytestmark = pytest.mark.tpu

SLICE = "v5e:2x2"
AXES = {"data": 2, "model": 2}


@functools.cache
def mesh() -> Mesh:
    return ruler.mesh(SLICE, AXES)


def shapes() -> tuple[jax.ShapeDtypeStruct, ...]:
    sides = (((1024, 2048), P("data", None)), ((2048, 4096), P(None, "model")))
    sides = (*sides, ((4096, 2048), P("model", None)))
    return tuple(
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh(), spec))
        for shape, spec in sides
    )


def feedforward(x: jax.Array, w_in: jax.Array, w_out: jax.Array) -> jax.Array:
    hidden = jax.nn.gelu(x @ w_in)
    return jax.lax.with_sharding_constraint(hidden @ w_out, NamedSharding(mesh(), P("data", None)))


@functools.cache
def compiled() -> jax.stages.Compiled:
    return jax.jit(feedforward).lower(*shapes()).compile()


@functools.cache
def expected() -> Timeline:
    return ruler.predict(compiled())


FORMS: dict[str, Callable[[], Timeline]] = {
    "function": lambda: ruler.predict(feedforward, *shapes()),
    "jitted": lambda: ruler.predict(jax.jit(feedforward), *shapes(), target=SLICE),
    "lowered": lambda: ruler.predict(jax.jit(feedforward).lower(*shapes())),
    "text": lambda: ruler.predict(compiled().as_text() or "", target=SLICE, mesh_axes=AXES),
}


@pytest.mark.parametrize("form", list(FORMS))
def test_every_form_of_a_program_has_one_timeline(form: str) -> None:
    timeline = FORMS[form]()
    assert timeline.total_seconds == pytest.approx(expected().total_seconds, rel=1e-9)
    assert timeline.exposed_by_op == expected().exposed_by_op


def test_a_function_with_options_of_its_own() -> None:
    """`ce.jit` compiles under the chip's options; of v5e they change nothing here."""
    timeline = ruler.predict(ce.jit(feedforward), *shapes(), target=SLICE)
    assert timeline.total_seconds == pytest.approx(expected().total_seconds, rel=0.2)


def test_time_and_waits_by_line() -> None:
    rows = expected().by_line()
    assert sum(row.seconds for row in rows) == pytest.approx(expected().total_seconds, rel=1e-6)
    assert sum(row.exposed for row in rows) == pytest.approx(expected().exposed_seconds)
    source = Path(__file__).read_text().splitlines()
    named = {source[row.line.line - 1].strip(): row for row in rows if row.line is not None}
    assert {row.line.file for row in rows if row.line is not None} == {__file__}
    # The sum over "model" belongs to the second matmul.
    (second,) = [row for text, row in named.items() if "hidden @ w_out" in text]
    assert second.exposed == pytest.approx(expected().exposed_seconds)
    (first,) = [row for text, row in named.items() if "x @ w_in" in text]
    assert first.exposed == 0 < first.compute
    text = str(expected())
    assert re.search(r"\nline +us +compute +exposed +copies +share\n", text)
    assert max(map(len, text.splitlines())) <= 120


def multiply(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def test_a_line_that_is_called_twice() -> None:
    def twice(x: jax.Array, w_in: jax.Array, w_out: jax.Array) -> jax.Array:
        hidden = multiply(x, w_in)
        return multiply(hidden, w_out)

    timeline = ruler.predict(twice, *shapes())
    (row,) = (row for row in timeline.by_line() if row.line and row.line.function == "multiply")
    rows = [r for r in timeline.by_line(callers=1) if r.line is not None and r.line == row.line]
    first = twice.__code__.co_firstlineno
    assert {call.line - first for r in rows for call in r.callers} == {1, 2}
    assert sum(r.seconds for r in rows) == pytest.approx(row.seconds)
    assert re.search(r"test_predict.py:\d+ twice > \d+ multiply +\d", str(timeline))


def test_axes_of_other_types() -> None:
    explicit = ruler.mesh(SLICE, AXES, axis_types=(AxisType.Explicit,) * 2)
    assert explicit.axis_types == (AxisType.Explicit,) * 2
    assert mesh().axis_types == (AxisType.Auto,) * 2
    with pytest.raises(ValueError, match="give every axis one type"):
        ruler.mesh(SLICE, AXES, axis_types=(AxisType.Explicit,))


def test_a_line_that_calls_the_library() -> None:
    def gathered(x: jax.Array, w: jax.Array) -> jax.Array:
        return ce.all_gather_einsum("me,ef->mf", x, w, axis_name="data", gather="m")

    function = jax.shard_map(
        gathered, mesh=mesh(), in_specs=(P("data"), P()), out_specs=P(), check_vma=False
    )
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh(), spec))
        for shape, spec in (((2048, 1024), P("data")), ((1024, 1024), P()))
    ]
    rows = ruler.predict(function, *args).by_line()
    longest = next(row for row in rows if row.line is not None)
    assert longest.line is not None
    assert longest.line.file == __file__
    assert "ce.all_gather_einsum" in Path(__file__).read_text().splitlines()[longest.line.line - 1]


def test_options_are_the_compilers() -> None:
    option = {"xla_tpu_scoped_vmem_limit_kib": "65536"}
    assert ruler.predict(feedforward, *shapes(), options=option).total_seconds > 0
    with pytest.raises(Exception, match="no_such_option"):
        ruler.predict(feedforward, *shapes(), options={"no_such_option": "1"})


def other_slice() -> Timeline:
    return ruler.predict(compiled(), target="v5e:4x4")


def plain_shapes() -> Timeline:
    return ruler.predict(feedforward, *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in shapes()))


def on_cpu() -> Timeline:
    where = NamedSharding(jax.make_mesh((8,), ("x",)), P())
    args = (jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where) for x in shapes())
    return ruler.predict(feedforward, *args)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (plain_shapes, "no argument says on which slice .* collective_einsum.ruler.mesh"),
        (on_cpu, "mesh is of CPU devices"),
        (other_slice, "'v5e:4x4' is 16 devices of .*, and the program is for a mesh of 4"),
        (lambda: ruler.predict("HloModule m"), "give target="),
        (lambda: ruler.predict("hello", target=SLICE), "does not start with `HloModule`"),
        (
            lambda: ruler.predict((compiled().as_text() or "")[:-200], target=SLICE),
            "no ENTRY computation",
        ),
        (lambda: ruler.predict(compiled().as_text() or "", target="v5e:4x4"), "for 4 devices"),
        (
            lambda: ruler.predict(
                jax.jit(feedforward).lower(*shapes()).as_text("hlo"), target=SLICE
            ),
            "not scheduled",
        ),
        (lambda: ruler.predict(compiled(), *shapes()), "args has no effect"),
        (lambda: ruler.predict(compiled(), options={"a": 1}), "options has no effect"),
        (lambda: ruler.predict(compiled(), mesh_axes=AXES), "mesh_axes=.* has no effect"),
        (lambda: ruler.mesh(SLICE, {"data": 3}), "choose axis sizes whose product is 4"),
        (lambda: ruler.mesh("v9:2x2", AXES), "there is no target 'v9:2x2'"),
    ],
)
def test_mistakes_are_answered_in_words(call: Callable[[], Timeline], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


MODULE = """\
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P

from collective_einsum import ruler


def step():
    mesh = ruler.mesh("v5e:2x2", {"model": 4})
    shapes = [((1024, 4096), P(None, "model")), ((4096, 1024), P("model", None))]
    args = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in shapes
    ]
    return lambda x, w: x @ w, *args


def nothing():
    return 3
"""


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_as_user([sys.executable, "-m", "collective_einsum.ruler", *words], folder)


def test_the_command_predicts_a_function_of_yours(tmp_path: Path) -> None:
    (tmp_path / "yours.py").write_text(MODULE)
    files = ("--png", "t.png", "--html", "t.html")
    run = command(tmp_path, "predict", "yours:step", "--target", "v5e:2x2", *files)
    assert run.returncode == 0, run.stderr
    assert re.search(r"\n.*15 <lambda> +\d", run.stdout)
    assert "So the program is predicted to take " in run.stdout
    assert "picture written to t.png" in run.stdout
    assert (tmp_path / "t.png").stat().st_size > 1000
    assert "page written to t.html" in run.stdout
    assert "return lambda x, w: x @ w, *args" in (tmp_path / "t.html").read_text()
    assert max(map(len, run.stdout.splitlines())) <= 120


def test_the_command_replays_a_text(tmp_path: Path) -> None:
    (tmp_path / "module.txt").write_text(compiled().as_text() or "")
    words = (
        "hlo",
        "module.txt",
        "--target",
        SLICE,
        "--mesh",
        "data=2,model=2",
        "--trace",
        "t.json",
    )
    run = command(tmp_path, *words)
    assert run.returncode == 0, run.stderr
    assert f"take {expected().total_seconds * 1e6:.1f} us" in run.stdout
    assert (tmp_path / "t.json").stat().st_size > 1000


def test_the_command_compares_a_text_with_a_function(tmp_path: Path) -> None:
    (tmp_path / "yours.py").write_text(MODULE)
    (tmp_path / "module.txt").write_text(compiled().as_text() or "")
    words = ("compare", "module.txt", "yours:step", "--target", SLICE, "--mesh", "data=2,model=2")
    run = command(tmp_path, *words)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("A: jit_feedforward on TPU v5e; B: jit__lambda on TPU v5e")
    said = " ".join(run.stdout.split())
    assert f"So A is predicted to take {expected().total_seconds * 1e6:.2f} us and B " in said
    assert max(map(len, run.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("predict yours", "'yours' is not MODULE:FUNCTION, such as mymodel:step"),
        ("predict yours:other", "has no attribute 'other'"),
        ("predict yours:nothing", "returned int; let it return (function, *arguments)"),
        ("predict other:step", "No module named 'other'"),
        ("predict yours:step --option a", "'a' is not NAME=VALUE"),
        ("hlo yours.py --target v5e:2x2", "does not start with `HloModule`"),
        ("hlo none.txt --target v5e:2x2", "none.txt"),
        ("hlo yours.py --target v5e:2x2 --mesh 4", "'4' is not AXIS=SIZE"),
        ("predict yours:step --png t.gif", "end its name in .png"),
        ("compare other:step yours.py --target v5e:2x2", "does not start with `HloModule`"),
        ("compare yours:step yours:nothing --target v5e:2x2", "returned int; let it return"),
    ],
)
def test_wrong_words_end_the_command_with_status_2(
    tmp_path: Path, words: str, message: str
) -> None:
    (tmp_path / "yours.py").write_text(MODULE)
    run = command(tmp_path, *words.split())
    assert run.returncode == 2
    assert message in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert not run.stdout


def test_the_command_lists_targets(tmp_path: Path) -> None:
    run = command(tmp_path, "targets")
    assert run.returncode == 0
    assert "v5e:XxY, such as v5e:4x4\n" in run.stdout
