"""Dtypes and rounding: of results, dots, sums and the wire, each by itself."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
from collective_einsum import Schedule

from .oracle import (
    Case,
    MeshOf,
    by_lax,
    hlo,
    on_devices,
    ours,
    random,
    schedules,
    wide,
)

pytestmark = pytest.mark.slow

N = 4
GATHER = Case("mk,kn->mn", "k", splittable="m")
SCATTER = Case("mk,kn->mn", scatter="n", splittable="m")
REDUCE = Case("mk,kn->mn", reduce=True, splittable="m")
CASES = [GATHER, Case("mk,kn->mn", "m", splittable="k"), SCATTER, REDUCE]
X = ("x",)


def operands(case: Case, dtype: Any, k: int = 64) -> list[np.ndarray]:
    """Long sums, so that a narrow accumulator shows."""
    ng, ns = (N, 1) if case.gather else (1, N)
    found = []
    for i, side in enumerate(("lhs", "rhs")):
        labels = case.terms[i]
        shape = list(case.shape(side, ng, ns))
        whole = k * N if case.gather == "k" and side == "rhs" else k
        shape[labels.index("k")] = whole
        kind = np.float32 if jnp.issubdtype(dtype, jnp.floating) else dtype
        found.append(random((N, *shape), i, kind).astype(dtype))
    return found


def expected(case: Case, lhs: Any, rhs: Any) -> np.ndarray:
    return case.expected(lhs, rhs, *((N, 1) if case.gather else (1, N)))


def rms(y: Any, want: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.abs(wide(y) - want) ** 2) / np.mean(np.abs(want) ** 2)))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_floats_are_summed_in_float32(mesh_of: MeshOf, dtype: str, case: Case) -> None:
    lhs, rhs = operands(case, jnp.dtype(dtype))

    def run(lhs: Any, rhs: Any) -> Any:
        found = {
            str(s): ours(case, lhs, rhs, X, schedule=s)
            for s in schedules(case.splittable, case.free)
        }
        exact = {
            str(s): ours(case, lhs, rhs, X, schedule=s, preferred_element_type=jnp.float32)
            for s in schedules(case.splittable, case.free)
        }
        return found, exact, by_lax(case, lhs, rhs, X)

    found, exact, lax_result = on_devices(mesh_of((N,), "x"), X, run, lhs, rhs)
    want = expected(case, lhs, rhs)
    once = rms(want.astype(jnp.dtype(dtype)), want)
    for schedule, y in found.items():
        assert y.dtype == lax_result.dtype == dtype
        # A gather rounds once, at the end; sums are rounded at each of 3 hops at most.
        assert rms(y, want) < once * (1.1 if case.gather else 3), schedule
    for schedule, y in exact.items():
        assert y.dtype == np.float32
        assert rms(y, want) < 1e-6, schedule


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "uint32", "complex64"])
def test_other_kinds(mesh_of: MeshOf, dtype: str, case: Case) -> None:
    lhs, rhs = operands(case, np.dtype(dtype))

    def run(lhs: Any, rhs: Any) -> Any:
        return {
            str(s): ours(case, lhs, rhs, X, schedule=s)
            for s in schedules(case.splittable, case.free)
        }

    want = expected(case, lhs, rhs)
    for schedule, y in on_devices(mesh_of((N,), "x"), X, run, lhs, rhs).items():
        assert y.dtype == dtype
        if dtype == "complex64":
            assert rms(y, want) < 1e-6, schedule
        else:
            np.testing.assert_array_equal(y, want, err_msg=schedule)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_small_integers_into_wide_ones(mesh_of: MeshOf, case: Case) -> None:
    lhs, rhs = (np.full_like(x, 127) for x in operands(case, np.int8))

    def run(lhs: Any, rhs: Any) -> Any:
        kind: Any = {"preferred_element_type": jnp.int32}
        found = {
            str(s): ours(case, lhs, rhs, X, schedule=s, **kind)
            for s in schedules(case.splittable, case.free)
        }
        with pytest.raises(ValueError, match="integer overflow"):
            ours(case, lhs, rhs, X, schedule="latency")
        return found

    want = expected(case, lhs, rhs)
    for schedule, y in on_devices(mesh_of((N,), "x"), X, run, lhs, rhs).items():
        assert y.dtype == np.int32
        np.testing.assert_array_equal(y, want, err_msg=schedule)
    moved = "i32" if not case.gather else "i8"
    text = hlo(
        mesh_of((N,), "x"),
        X,
        lambda a, b: ours(case, a, b, X, schedule="latency", preferred_element_type=jnp.int32),
        lhs,
        rhs,
    )
    assert wires(text) == {moved}


def wires(text: str) -> set[str]:
    """The element types of what permutes move."""
    lines = [line for line in text.splitlines() if "stablehlo.collective_permute" in line]
    assert lines
    return {line.split("->")[-1].split("tensor<")[1].split(">")[0].split("x")[-1] for line in lines}


@pytest.mark.parametrize("case", [GATHER, SCATTER, REDUCE], ids=str)
def test_wire_dtype(mesh_of: MeshOf, case: Case) -> None:
    lhs, rhs = operands(case, np.float32)
    mesh = mesh_of((N,), "x")
    chosen: list[Any] = ["blocking", "latency", Schedule("chunked", chunks=2, label="m")]

    def run(lhs: Any, rhs: Any) -> Any:
        by_option = {
            str(s): ours(case, lhs, rhs, X, schedule=s, wire_dtype=jnp.bfloat16) for s in chosen
        }
        return by_option, ours(case, lhs, rhs, X, schedule=Schedule(wire_dtype="bfloat16"))

    by_option, by_schedule = on_devices(mesh, X, run, lhs, rhs)
    want = expected(case, lhs, rhs)
    for schedule, y in by_option.items():
        assert y.dtype == np.float32
        # Eight bits of what moved, not of what stayed.
        assert 1e-4 < rms(y, want) < 2.0**-7, schedule
    np.testing.assert_array_equal(by_schedule, by_option["latency"])
    for s in chosen[1:]:
        program = lambda a, b, s=s: ours(case, a, b, X, schedule=s, wire_dtype="bfloat16")  # noqa: E731
        assert wires(hlo(mesh, X, program, lhs, rhs)) == {"bf16"}
    narrow = [x.astype(jnp.bfloat16) for x in (lhs, rhs)]
    wider = lambda a, b: ours(case, a, b, X, schedule="latency", wire_dtype="float32")  # noqa: E731
    assert wires(hlo(mesh, X, wider, *narrow)) == {"f32"}


def test_a_float32_wire_saves_a_bfloat16_sum(mesh_of: MeshOf) -> None:
    lhs, rhs = operands(SCATTER, jnp.bfloat16)

    def run(lhs: Any, rhs: Any) -> Any:
        return [
            ours(SCATTER, lhs, rhs, X, schedule="unidirectional", wire_dtype=wire)
            for wire in (None, jnp.float32)
        ]

    narrow, broad = on_devices(mesh_of((N,), "x"), X, run, lhs, rhs)
    want = expected(SCATTER, lhs, rhs)
    once = rms(want.astype(jnp.bfloat16), want)
    assert rms(broad, want) < once * 1.01 < rms(narrow, want)


def test_accumulator_dtype(mesh_of: MeshOf) -> None:
    lhs, rhs = operands(GATHER, jnp.bfloat16)

    def run(lhs: Any, rhs: Any) -> Any:
        return {
            dtype: ours(
                GATHER, lhs, rhs, X, schedule="latency", accumulator_dtype=dtype,
                preferred_element_type=jnp.float32,
            )
            for dtype in ("bfloat16", "float32")
        }  # fmt: skip

    got = on_devices(mesh_of((N,), "x"), X, run, lhs, rhs)
    want = expected(GATHER, lhs, rhs)
    assert rms(got["float32"], want) < 1e-6 < 1e-3 < rms(got["bfloat16"], want)


def test_precision_reaches_every_dot(mesh_of: MeshOf) -> None:
    lhs, rhs = operands(GATHER, np.float32)
    mesh = mesh_of((N,), "x")

    def dots(program: Any) -> list[str]:
        text = hlo(mesh, X, program, lhs, rhs)
        return [line for line in text.splitlines() if "stablehlo.dot_general" in line]

    for s in ("blocking", "latency", Schedule("chunked", chunks=2, label="m")):
        asked = dots(lambda a, b, s=s: ours(GATHER, a, b, X, schedule=s, precision="highest"))
        assert asked
        assert all("HIGHEST" in line for line in asked)

        def inherited(a: Any, b: Any, s: Any = s) -> Any:
            with jax.default_matmul_precision("highest"):
                return ours(GATHER, a, b, X, schedule=s)

        assert dots(inherited) == asked
        plain = dots(lambda a, b, s=s: ours(GATHER, a, b, X, schedule=s))
        assert not any("HIGHEST" in line for line in plain)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("int8", "bfloat16"),
        ("float32", "complex64"),
        ("int32", "float32"),
        ("float16", "bfloat16"),
    ],
)
def test_mixed_dtypes_are_those_of_einsum(mesh_of: MeshOf, left: str, right: str) -> None:
    def run(lhs: Any, rhs: Any) -> Any:
        return [
            ce.all_gather_einsum("mk,kn->mn", lhs, rhs, axis_name="x", gather="k", schedule=s)
            for s in ("blocking", "latency")
        ]

    lhs = operands(GATHER, jnp.dtype(left), k=3)[0]
    rhs = operands(GATHER, jnp.dtype(right), k=3)[1]
    with jax.numpy_dtype_promotion("standard"):
        want = jnp.einsum("mk,kn->mn", lhs[0], rhs[0, :3])
        for y in on_devices(mesh_of((N,), "x"), X, run, lhs, rhs):
            assert y.dtype == want.dtype
            assert rms(y, expected(GATHER, lhs, rhs)) < (
                0.01 if want.dtype == jnp.bfloat16 else 1e-5
            )


def test_both_ends_have_one_wire(mesh_of: MeshOf) -> None:
    case = Case("mk,kn->mn", "k", scatter="n", splittable="m")
    lhs, rhs = case.operands(2, 2)
    mesh = mesh_of((2, 2), "xy")

    def run(lhs: Any, rhs: Any) -> Any:
        with pytest.raises(ValueError, match="wire_dtype=float32 cannot carry complex64"):
            ours(case, lhs, rhs.astype(jnp.complex64), X, ("y",), wire_dtype="float32")
        with pytest.raises(ValueError, match="wire_dtype=complex64 cannot carry float32"):
            ours(case, lhs, rhs.astype(jnp.complex64), X, ("y",), wire_dtype="complex64")
        return ours(case, lhs, rhs, X, ("y",), schedule="latency", wire_dtype="bfloat16")

    with jax.numpy_dtype_promotion("standard"):
        y = on_devices(mesh, ("x", "y"), run, lhs, rhs)
    assert 1e-4 < rms(y, case.expected(lhs, rhs, 2, 2)) < 0.01
