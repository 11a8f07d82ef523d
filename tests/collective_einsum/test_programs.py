"""What jax hands to the compiler: scopes, loops, and which collectives there are."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import pytest

from collective_einsum import Schedule
from collective_einsum.schedule import DIRECTIONS

from .oracle import Case, MeshOf, hlo, ours, shard

X = ("x",)
GATHER = Case("mk,kn->mn", "k", cuts="m")
SCATTER = Case("mk,kn->mn", scatter="n", cuts="m")
LAX = ("all_gather", "reduce_scatter", "all_reduce", "all_to_all")


def program(mesh_of: MeshOf, case: Case, n: int, schedule: Any) -> str:
    lhs, rhs = case.operands(n if case.gather else 1, 1 if case.gather else n)
    run = lambda a, b: ours(case, a, b, X, schedule=schedule)  # noqa: E731
    return hlo(mesh_of((n,), "x"), X, run, lhs, rhs)


@pytest.mark.parametrize("case", [GATHER, SCATTER], ids=str)
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_hops_and_dots(mesh_of: MeshOf, n: int, case: Case) -> None:
    hops = {"unidirectional": n - 1, "bidirectional": 2 * (n - 1), "latency": n - 1}
    for direction in DIRECTIONS:
        text = program(mesh_of, case, n, direction)
        assert text.count("stablehlo.collective_permute") == hops[direction]
        # A dot for each piece that moves, and one for what stays at home.
        assert text.count("stablehlo.dot_general") == hops[direction] + 1
        assert not any(f"stablehlo.{name}" in text for name in LAX)
    blocking = program(mesh_of, case, n, "blocking")
    assert blocking.count("stablehlo.dot_general") == 1
    assert "stablehlo.collective_permute" not in blocking


@pytest.mark.parametrize("case", [GATHER, SCATTER], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_rolled_loop_does_not_grow(mesh_of: MeshOf, case: Case, direction: Any) -> None:
    def size(n: int, rolled: bool) -> int:
        text = program(mesh_of, case, n, Schedule("ring", direction, rolled=rolled))
        assert ("stablehlo.while" in text) == rolled
        return text.count("stablehlo.dot_general"), text.count("stablehlo.collective_permute")

    # An even ring of "latency" has a hop of its own; compare even ones, long enough for a loop.
    assert size(6, rolled=True) == size(8, rolled=True)
    assert max(size(8, rolled=True)) < max(size(8, rolled=False)) / 1.5


@pytest.mark.parametrize("n", [16, 64])
def test_long_rings_are_rolled_without_asking(n: int) -> None:
    # The machine has 8 devices; jax traces and lowers for any number of them.
    mesh = jax.sharding.AbstractMesh((n,), X)

    def lowered(n: int) -> str:
        case = Case("mk,kn->mn", "k")
        lhs, rhs = (jax.ShapeDtypeStruct(x.shape, x.dtype) for x in case.operands(n))
        run = lambda a, b: ours(case, a, b, X, schedule="latency")  # noqa: E731
        return str(jax.jit(shard(mesh, X, run)).trace(lhs, rhs).lower(
            lowering_platforms=("tpu",)).as_text())  # fmt: skip

    text = lowered(n)
    assert "stablehlo.while" in text
    assert text.count("stablehlo.dot_general") <= 6


@pytest.mark.parametrize("case", [GATHER, SCATTER, Case("mk,kn->mn", reduce=True)], ids=str)
def test_named_scopes(mesh_of: MeshOf, case: Case) -> None:
    name = {"k": "all_gather_einsum", "n": "einsum_reduce_scatter", "": "einsum_all_reduce"}[
        case.gather or case.scatter
    ]
    for schedule, words in (("blocking", "blocking"), ("bidirectional", "bidirectional")):
        assert f"{name}[{words}]/" in program(mesh_of, case, 4, schedule)
    lhs, rhs = case.operands(4 if case.gather else 1, 1 if case.gather else 4)
    run = lambda a, b: ours(case, a, b, X, schedule="latency")  # noqa: E731
    compiled = jax.jit(shard(mesh_of((4,), "x"), X, run)).lower(lhs, rhs).compile().as_text()
    assert compiled is not None
    permutes = [x for x in compiled.splitlines() if " collective-permute" in x and "op_name" in x]
    assert permutes
    assert all(f"{name}[latency]" in line for line in permutes)


def test_import_does_no_work() -> None:
    # No device is touched and no backend starts.
    code = (
        "import jax, collective_einsum, sys\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert 'bench' not in sys.modules and 'libtpu' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
