"""einsum of global arrays: every sharding gives jnp.einsum's result, sharded as asked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MeshOf = Callable[..., Mesh]
Specs = tuple[P, P, P]

MESHES = {"2x2x2": ((2, 2, 2), "xyz"), "8": ((8,), "x"), "2x4": ((2, 4), "xy")}


def whole(shape: Iterable[int], seed: int) -> np.ndarray:
    """Small whole numbers, whose sums are exact in any order."""
    return np.random.default_rng(seed).integers(-4, 5, tuple(shape)).astype(np.float32)


def on(mesh: Mesh, x: Any, spec: P) -> jax.Array:
    """`x` laid out on the mesh by `spec`, which on Explicit axes is its type."""
    return jax.device_put(x, NamedSharding(mesh, spec))


def sharded_einsum(
    mesh: Mesh, explicit: bool, spec: str, specs: Specs, **options: Any
) -> Callable[..., jax.Array]:
    """`ce.einsum` with the shardings given by types, or by in_specs."""
    if not explicit:
        options |= {"in_specs": specs[:2]}
    out = NamedSharding(mesh, specs[2])
    return lambda x, w: ce.einsum(spec, x, w, out_sharding=out, mesh=mesh, **options)


def expect(got: jax.Array, want: Any, mesh: Mesh, spec: P, explicit: bool) -> None:
    """`got` equals `want`, and lies, and is typed, as `spec` says."""
    np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    assert got.sharding.is_equivalent_to(NamedSharding(mesh, spec), got.ndim)
    if explicit:
        assert jax.typeof(got) == jax.typeof(on(mesh, want, spec))


def entries(names: str) -> list[str | tuple[str, ...] | None]:
    """Some ways to shard one dimension, among them tuples in and against the mesh's order."""
    return [None, names[0], tuple(names), *([tuple(reversed(names))] if len(names) > 1 else [])]


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("name", MESHES)
def test_matrix(mesh_of: MeshOf, name: str, explicit: bool) -> None:
    """One entry a dimension of lhs, rhs and result: contracted, free and batch labels."""
    shape, names = MESHES[name]
    mesh = mesh_of(shape, names, explicit)
    x, w = whole((8, 16), 0), whole((16, 8), 1)
    last = names[-1]
    rows: list[P] = [P(None, entry) for entry in entries(names)]
    columns: list[P] = [P(entry, None) for entry in entries(names)[:3]] + [P(None, last)]
    results = [P(), P(None, names[0]), P(tuple(names), None), P(last, None)]
    cases = list(itertools.product(rows, columns, results))[::2]

    def program(x: Any, w: Any) -> list[jax.Array]:
        found = []
        for specs in cases:
            put = [
                jax.reshard(v, s) if explicit else v for v, s in zip((x, w), specs, strict=False)
            ]
            run = sharded_einsum(mesh, explicit, "mk,kn->mn", specs, schedule="blocking")
            found.append(run(*put))
        return found

    with jax.set_mesh(mesh):
        found = jax.jit(program)(x, w)
    want = x @ w
    for specs, got in zip(cases, found, strict=True):
        expect(got, want, mesh, specs[2], explicit)


@pytest.mark.parametrize("schedule", ["auto", "unidirectional", "bidirectional", "latency"])
def test_schedules(mesh_of: MeshOf, schedule: str) -> None:
    """The feedforward of two dimensions of weights, both einsums, in one program."""
    mesh = mesh_of((2, 2, 2), "xyz", explicit=True)
    x, w, v = whole((2, 4, 16), 0), whole((16, 32), 1), whole((32, 16), 2)
    e, f = P(None, None, ("x", "y", "z")), P(None, None, ("y", "z", "x"))

    def feedforward(x: Any, w: Any, v: Any) -> jax.Array:
        h = ce.einsum("ble,ef->blf", x, w, out_sharding=f, schedule=schedule)
        return ce.einsum("blf,fe->ble", h, v, out_sharding=e, schedule=schedule)

    with jax.set_mesh(mesh):
        operands = on(mesh, x, e), on(mesh, w, P("x", ("y", "z"))), on(mesh, v, P(("y", "z"), "x"))
        expect(jax.jit(feedforward)(*operands), x @ w @ v, mesh, e, True)


SPECS = [
    "ij,jk->ik", "bij,bjk->bik", "ij,kj->ki", "ij,jk", "ij,jk->k", "ij,k->k", "ij,kl->jl",
    "ij,ij->", "ij,ij->ji", "ij,kl->ijkl", "ii,ij->ij", "iji,jk->ik", "iij,j->ij",
    "...ij,...jk->...ik", "abc,cbd->ad",
]  # fmt: skip


@st.composite
def problems(draw: st.DrawFn) -> tuple[Any, ...]:
    """A mesh, an einsum, its shapes (some broadcast) and three shardings that fit them."""
    shape, names = draw(st.sampled_from([*MESHES.values(), ((4, 1, 2), "xyz")]))
    spec = draw(st.sampled_from(SPECS))
    left, right = spec.split("->")[0].replace("...", "pq").split(",")
    if "..." in spec and draw(st.booleans()):
        right = right.replace("p", "")
    sizes = {label: draw(st.sampled_from([8, 16])) for label in sorted({*left, *right})}
    shapes = [[sizes[label] for label in labels] for labels in (left, right)]
    if right[0] in left and right.count(right[0]) == 1 and draw(st.integers(0, 5)) == 0:
        shapes[1][0] = 1
    out = np.einsum(spec, *map(np.empty, shapes)).shape

    def sharding(dims: tuple[int, ...]) -> P:
        left = [*dims, 8]
        found: list[tuple[str, ...]] = [()] * len(left)
        for axis in draw(st.permutations(names)):
            place, n = draw(st.integers(0, len(dims))), shape[names.index(axis)]
            if left[place] % n == 0:
                left[place] //= n
                found[place] += (axis,)
        return P(*(axes or None for axes in found[:-1]))

    specs = tuple(sharding(tuple(dims)) for dims in (*shapes, out))
    schedule = draw(st.sampled_from(["auto", "blocking", "latency"]))
    return shape, names, draw(st.booleans()), spec, shapes, specs, schedule


@pytest.mark.slow
@settings(max_examples=40, derandomize=True)
@given(problems())
def test_any_sharding(mesh_of: MeshOf, problem: tuple[Any, ...]) -> None:
    shape, names, explicit, spec, shapes, specs, schedule = problem
    mesh = mesh_of(shape, names, explicit)
    x, w = whole(shapes[0], 0), whole(shapes[1], 1)
    run = sharded_einsum(mesh, explicit, spec, specs, schedule=schedule)
    operands = on(mesh, x, specs[0]), on(mesh, w, specs[1])
    want, pull = jax.vjp(lambda x, w: jnp.einsum(spec, x, w), x, w)
    ct = whole(want.shape, 2)

    def both(x: Any, w: Any, ct: Any) -> Any:
        y, pullback = jax.vjp(run, x, w)
        return y, pullback(ct)

    got, grads = jax.jit(both)(*operands, on(mesh, ct, specs[2]))
    expect(got, want, mesh, specs[2], explicit)
    for grad, other, operand in zip(grads, pull(ct), operands, strict=True):
        np.testing.assert_array_equal(np.asarray(grad), np.asarray(other))
        assert not explicit or jax.typeof(grad) == jax.typeof(operand)
