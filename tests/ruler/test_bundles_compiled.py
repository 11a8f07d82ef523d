"""Bundles that the installed compiler dumps, against its own profile and the arithmetic of its chips."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from collective_einsum import ruler
from tests.users import run_as_user

pytestmark = pytest.mark.tpu

COUNTS = """
import json, os, re, sys
name, *sides = sys.argv[1:4] + [int(side) for side in sys.argv[4:7]]
stacked = sys.argv[7:] == ["stacked"]
if sys.argv[7:] and not stacked:
    # With this flag the compiler writes its own count, `bundle_analysis_data`, into the program.
    os.environ["LIBTPU_INIT_ARGS"] = "--xla_jf_dump_static_llo_profile_to=" + sys.argv[7]
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from collective_einsum import ruler
from collective_einsum.ruler.bundles import dump
lhs, rhs, (rows, contracted, columns) = *sides[:2], sides[2:]
mesh = ruler.mesh(name, {"x": 4}, bundles=True)
def dot(x, w):
    sums = jnp.int32 if lhs == "int8" else jnp.float32
    y = jnp.einsum("me,ef->mf", x, w if lhs == rhs else w.astype(x.dtype), preferred_element_type=sums)
    return y if lhs == "int8" else y.astype(x.dtype)
shapes = [((rows, contracted), lhs), ((contracted, columns), rhs)]
if stacked:
    one, shapes[1] = dot, ((4, contracted, columns), rhs)
    def dot(x, stack):
        return jax.lax.scan(lambda x, w: (one(x, w), None), x, stack)[0]
args = [jax.ShapeDtypeStruct(*s, sharding=NamedSharding(mesh, P())) for s in shapes]
executable, text = dump.text_of(jax.jit(dot).lower(*args).compile)
counted = [line for line in text.splitlines() if "issued_bundles" in line]
line = max(counted, key=lambda line: int(re.search(r'issued_bundles":"(\\d+)', line)[1]))
own = re.search(r'bundle_analysis_data":{"estimated_cycles":"(\\d+)', line)
fields = {key: int(re.search(f'"{key}":"(\\\\d+)', line)[1]) for key in ("estimated_cycles",
          "issued_bundles", "issued_windows")}
print(json.dumps(fields | {"own": int(own[1]) if own else 0}))
"""


def counted(folder: Path, *words: object) -> dict[str, int]:
    run = run_as_user([sys.executable, "-c", COUNTS, *map(str, words)], folder)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("slice_", "lhs", "rhs", "sides"),
    [
        ("v5p:2x2x1", "bfloat16", "int8", (64, 4608, 10240)),
        ("v5e:2x2", "bfloat16", "int8", (64, 4608, 10240)),
    ],
)
def test_counts_are_near_the_compilers_own(
    tmp_path: Path, slice_: str, lhs: str, rhs: str, sides: tuple[int, int, int]
) -> None:
    """Its static profile adds waits for the first window, the last one, and between them."""
    row = counted(tmp_path, slice_, lhs, rhs, *sides, tmp_path)
    assert 0.85 * row["own"] < row["issued_bundles"] < row["own"]


def test_int8_weights_issue_half_of_their_estimate_on_v4(tmp_path: Path) -> None:
    """The matrix units take int8 weights as they are: 8 units of 128 x 128 take 32 rows of weights a
    push, which keeps them busy for as long as the 64 rows that are multiplied."""
    row = counted(tmp_path, "v4:2x2x1", "bfloat16", "int8", 64, 4608, 10240)
    least = 64 * 4608 * 10240 / (8 * 128 * 128)
    assert least < row["issued_bundles"] < 1.2 * least
    assert row["issued_bundles"] < 0.6 * row["estimated_cycles"]
    assert row["issued_windows"] == 18


def test_int8_weights_of_a_scanned_stack_are_widened_on_v4(tmp_path: Path) -> None:
    """The dot slices its weight from the stack and converts it on the vector units, which takes longer
    than the matrix units do."""
    sides = (64, 4608, 4608)
    own, stacked = (
        counted(tmp_path, "v4:2x2x1", "bfloat16", "int8", *sides, *words)
        for words in ([], ["stacked"])
    )
    assert stacked["issued_bundles"] > 3 * own["issued_bundles"]
    assert own["issued_bundles"] < 0.6 * own["estimated_cycles"]
    assert stacked["issued_bundles"] > stacked["estimated_cycles"]


MODULE = """
import jax, jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import NamedSharding, PartitionSpec as P
from collective_einsum import ruler

def step():
    mesh = ruler.mesh("v5e:2x2", {"x": 4})
    def double(x, out):
        out[...] = x[...] + x[...]
    def f(x, first, second):
        x = jax.shard_map(lambda x: pl.pallas_call(double, out_shape=x)(x),
                          mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(x)
        x = jax.lax.optimization_barrier(x @ first.astype(x.dtype))
        return x @ second.astype(x.dtype)
    shapes = ((64, 2048), jnp.bfloat16), ((2048, 2048), jnp.int8), ((2048, 2048), jnp.int8)
    sharding = NamedSharding(mesh, P())
    return f, *(jax.ShapeDtypeStruct(*s, sharding=sharding) for s in shapes)
"""


def test_the_command_counts_bundles(tmp_path: Path) -> None:
    """Both dots, which share their code, and the kernel; the table says how many used which."""
    (tmp_path / "yours.py").write_text(MODULE)
    words = ["-m", "collective_einsum.ruler", "predict", "yours:step", "--bundles"]
    run = run_as_user([sys.executable, *words], tmp_path)
    assert run.returncode == 0, run.stderr
    number = re.search(r"note: (\d+) ops have their issued bundles counted: ", run.stdout)
    assert number
    assert int(number[1]) >= 3
    assert max(map(len, run.stdout.splitlines())) <= 120
    assert "gives no estimate of" not in run.stdout


def test_bundles_have_to_be_asked_for_first() -> None:
    ruler.mesh("v5e:2x2", {"x": 4})
    with pytest.raises(ValueError, match="libtpu has started and cannot dump bundles any more"):
        ruler.mesh("v5e:2x2", {"x": 4}, bundles=True)
