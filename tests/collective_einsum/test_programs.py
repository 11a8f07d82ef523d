"""What jax hands to the compiler: scopes, loops, and which collectives there are."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from collective_einsum import Schedule
from collective_einsum.ops.schedule import DIRECTIONS

from .oracle import Case, MeshOf, hlo, ours, shard

X = ("x",)
GATHER = Case("mk,kn->mn", "k", splittable="m")
SCATTER = Case("mk,kn->mn", scatter="n", splittable="m")
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


def long_program(case: Case, n: int, schedule: Any) -> str:
    """As `program`, for rings longer than there are devices."""
    operands = case.operands(n if case.gather else 1, 1 if case.gather else n)
    mesh: Any = jax.sharding.AbstractMesh((n,), X)
    run = lambda a, b: ours(case, a, b, X, schedule=schedule)  # noqa: E731
    shapes = [
        jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype, sharding=NamedSharding(mesh, P(X)))
        for x in operands
    ]
    traced = jax.jit(shard(mesh, X, run)).trace(*shapes)
    return traced.lower(lowering_platforms=("tpu",)).as_text()


@pytest.mark.parametrize("case", [GATHER, SCATTER], ids=str)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_rolled_loop_does_not_grow(case: Case, direction: Any) -> None:
    def size(n: int, rolled: bool) -> int:
        text = long_program(case, n, Schedule("ring", direction, rolled=rolled))
        assert ("stablehlo.while" in text) == rolled
        return text.count("stablehlo.")

    # The two ways of "latency" differ by a hop on an even ring, and loops go by two hops of a gather.
    assert size(15, rolled=True) == size(31, rolled=True)
    assert size(18, rolled=True) == size(30, rolled=True)
    assert size(31, rolled=True) < size(31, rolled=False) / 2


@pytest.mark.parametrize("case", [GATHER, SCATTER], ids=str)
def test_long_rings_are_rolled_without_asking(case: Case) -> None:
    sizes = []
    for n in (16, 64, 256):
        text = long_program(case, n, "latency")
        assert "stablehlo.while" in text
        sizes.append(text.count("stablehlo."))
    assert sizes[0] == sizes[1] == sizes[2]


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
