"""Quantized operands of the collective einsums: right, scaled once, and int8 on the wire."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Quantized, Schedule, quantize

from .oracle import Case, MeshOf, assert_close, hlo, on_devices, ours, random, schedules, wide

N = 4
X = ("x",)
# Which operand is quantized, and the dimensions that share its scale: those that are summed over.
CASES = [
    (Case("mk,kn->mn", "k", splittable="m"), "rhs", 0),
    (Case("mk,kn->mn", "m", splittable="k"), "rhs", 0),
    (Case("mk,kn->mn", "k", "rhs", splittable="n"), "rhs", 0),
    (Case("mk,kn->nm", "n", "rhs", splittable="k"), "rhs", 0),
    (Case("bmk,bkn->bnm", "b", "rhs", splittable="n"), "rhs", 1),
    (Case("mk,kn->mn", "m", splittable="k"), "lhs", 1),
    (Case("mk,kn->mn", scatter="n", splittable="m"), "rhs", 0),
    (Case("mk,kn->mn", scatter="m", splittable="n"), "lhs", 1),
    (Case("bmk,bkn->bmn", scatter="b", splittable="n"), "rhs", 1),
    (Case("mk,kn->mn", reduce=True, splittable="m"), "rhs", 0),
]


def case_id(case: Any) -> str:
    return f"{case[0]} {case[1]}"


def prepared(case: Case, side: str, axis: int) -> tuple[list[Any], list[np.ndarray]]:
    """The operands, one of them Quantized, and what they stand for, in float64."""
    ng, ns = (N, 1) if case.gather else (1, N)
    operands: list[Any] = case.operands(ng, ns)
    i = int(side == "rhs")
    # Channels of very different magnitude, so that a scale of another one is a gross error.
    channels = np.exp(2 * random(operands[i].shape, 3)[:, :1])
    # One scale for all devices where their products are summed.
    shared = not case.gather or (case.gather == "k" and case.operand == side)
    q = quantize(jnp.asarray(operands[i] * channels), (0, axis + 1) if shared else axis + 1)
    stands_for = list(map(wide, operands))
    stands_for[i] = wide(q.values) * wide(q.scale)
    operands[i] = q
    return operands, stands_for


def with_scales(function: Any, operands: list[Any]) -> tuple[Any, list[Any]]:
    """The function of what differs by device, and that: not a scale that all devices share."""
    shared = [isinstance(x, Quantized) and x.scale.shape[0] == 1 for x in operands]

    def run(*moved: Any) -> Any:
        return function(
            *(
                Quantized(x, q.scale[0], q.dtype) if one else x
                for x, q, one in zip(moved, operands, shared, strict=True)
            )
        )

    return run, [x.values if one else x for x, one in zip(operands, shared, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_against_the_array_stood_for(mesh_of: MeshOf, case: Any) -> None:
    what, side, axis = case
    operands, stands_for = prepared(what, side, axis)

    def every(lhs: Any, rhs: Any) -> Any:
        return {
            str(s): ours(what, lhs, rhs, X, schedule=s)
            for s in schedules(what.splittable, what.free)
        }

    mesh = mesh_of((N,), "x")
    run, moved = with_scales(every, operands)
    want = what.expected(*stands_for, *((N, 1) if what.gather else (1, N)))
    assert_close(on_devices(mesh, X, run, *moved), want, dtype=np.float32)
    if what.gather and what.operand == side:
        shape = "x".join(map(str, operands[side == "rhs"].shape[1:]))
        for s in ("latency", Schedule("chunked")):
            run, moved = with_scales(lambda a, b, s=s: ours(what, a, b, X, schedule=s), operands)
            text = hlo(mesh, X, run, *moved)
            lines = [x for x in text.splitlines() if "stablehlo.collective_permute" in x]
            types = [line.split("->")[-1].split("tensor<")[1].split(">")[0] for line in lines]
            assert types.count(f"{shape}xi8") == N - 1
            # The scale goes round by itself where it is that of the gathered label.
            assert all("1x" in each for each in types if not each.endswith("xi8"))


@pytest.mark.parametrize("size", [1, 2])
def test_a_shard_of_one_channel_has_its_own_scale(mesh_of: MeshOf, size: int) -> None:
    # With one row or column a device, its scale is as small as one that all share.
    x = random((N, 3, 8))
    w = random((N, 8, size), 1) * np.arange(1.0, N + 1)[:, None, None].astype(np.float32) ** 4
    q = quantize(jnp.asarray(w), 1)
    mesh = mesh_of((N,), "x")

    def run(x: Any, q: Any) -> Any:
        return [
            ce.all_gather_einsum("mk,kn->mn", x, q, axis_name="x", gather="n", schedule=s)
            for s in ("blocking", "latency")
        ]

    case = Case("mk,kn->mn", "n", "rhs")
    stands_for = wide(q.values) * wide(q.scale)
    for y in on_devices(mesh, X, run, x, q):
        assert_close({size: y}, case.expected(x, stands_for, N))

    # Scattered to one column each: every device needs the scale of its own one.
    v = quantize(jnp.asarray(np.concatenate(list(w), axis=1)), 0)

    def scattered(x: Any) -> Any:
        return ce.einsum_reduce_scatter(
            "mk,kn->mn", x, v, axis_name="x", scatter="n", schedule="latency"
        )

    got = on_devices(mesh, X, scattered, x)
    total = wide(x).sum(axis=0) @ (wide(v.values) * wide(v.scale))
    assert_close({size: got}, np.stack(np.split(total, N, axis=1)))


def test_both_ends_and_a_sequence(mesh_of: MeshOf) -> None:
    case = Case("mk,kn->mn", "k", scatter="n", splittable="m")
    mesh = mesh_of((2, 2), "xy")
    lhs, rhs = case.operands(2, 2)
    q = quantize(jnp.asarray(rhs), (0, 1))

    def every(lhs: Any, q: Any, rhs: Any) -> Any:
        # A Quantized and an array share one gather.
        return {
            str(s): ours(case, lhs, [q, rhs], X, ("y",), schedule=s)
            for s in schedules(case.splittable, case.free)
        }

    run, moved = with_scales(every, [lhs, q, rhs])
    got = on_devices(mesh, ("x", "y"), run, *moved)
    stands_for = wide(q.values) * wide(q.scale)
    for i, right in enumerate((stands_for, rhs)):
        each = {s: results[i] for s, results in got.items()}
        assert_close(each, case.expected(lhs, right, 2, 2), dtype=np.float32)


def test_two_quantized_operands(mesh_of: MeshOf) -> None:
    case = Case("mk,kn->mn", "m", splittable="k")
    lhs, rhs = case.operands(N)
    a, b = quantize(jnp.asarray(lhs), 2), quantize(jnp.asarray(rhs), 1)

    def run(a: Any, b: Any) -> Any:
        # The same object on both sides: only what is gathered has its scale gathered.
        square = quantize(jnp.ones((3, 3)) * jnp.arange(1.0, 4.0)[:, None], 1)
        twice = ce.all_gather_einsum("mk,nk->mn", square, square, axis_name="x", gather="m")
        return {s: ours(case, a, b, X, schedule=s) for s in ("blocking", "latency")}, twice

    got, twice = on_devices(mesh_of((N,), "x"), X, run, a, b)
    want = case.expected(wide(a.values) * wide(a.scale), wide(b.values) * wide(b.scale), N)
    assert_close(got, want)
    row = np.arange(1.0, 4.0)
    assert_close({"": twice}, np.stack([np.tile(3 * np.outer(row, row), (N, 1))] * N))


def test_dtypes_and_rounding(mesh_of: MeshOf) -> None:
    # Scales come after the sums and nothing is rounded before them: once to bfloat16, at the end.
    case = Case("mk,kn->mn", "k")
    lhs, rhs = random((N, 4, 64)).astype(jnp.bfloat16), random((N, 64 * N, 7), 1)
    q = quantize(jnp.asarray(rhs), 1, stands_for=jnp.bfloat16)

    def run(lhs: Any, q: Any) -> Any:
        wider = ours(case, lhs, q, X, schedule="latency", preferred_element_type=jnp.float32)
        return ours(case, lhs, q, X, schedule="latency"), wider

    y, wider = on_devices(mesh_of((N,), "x"), X, run, lhs, q)
    want = case.expected(wide(lhs), wide(q.values) * wide(q.scale), N)
    assert y.dtype == jnp.bfloat16
    assert_close({"wider": wider}, want, tolerance=1e-6, dtype=np.float32)
    np.testing.assert_allclose(wide(y), want, rtol=2.0**-8, atol=1e-4)


def test_the_other_operand_is_differentiable(mesh_of: MeshOf) -> None:
    lhs, q = random((N, 3, 4)), quantize(jnp.asarray(random((16, 8), 1)), (0, 1))

    def run(lhs: Any) -> Any:
        def loss(x: Any, w: Any, s: Any) -> Any:
            gathered = ce.all_gather_einsum(
                "mk,kn->mn", x, w, axis_name="x", gather="k", schedule=s
            )
            y = ce.einsum_reduce_scatter(
                "mn,kn->mk", jnp.sin(gathered), w, axis_name="x", scatter="k", schedule=s
            )
            return jnp.sum(jnp.sin(y))

        grad = jax.grad(loss)
        found = {s: grad(lhs, q, s) for s in ("blocking", "latency")}
        return found, grad(lhs, q.dequantize(), "blocking")

    got, want = on_devices(mesh_of((N,), "x"), X, run, lhs)
    assert_close(got, wide(want), dtype=np.float32)


@pytest.mark.parametrize("direction", ["async", "latency", "bidirectional"])
def test_chunks_are_scaled_one_by_one(mesh_of: MeshOf, direction: Any) -> None:
    # So that the scale is a part of each chunk's dot; of the whole result it would be a pass.
    x, w, v = random((N, 2, 6, 4)), random((16, 8), 1), random((16, 8), 2)
    q, r = (quantize(jnp.asarray(each), 0) for each in (w, v))
    schedule = ce.Schedule("chunked", direction, chunks=(1, 2), label="m")

    def product(x: Any) -> Any:
        return ce.all_gather_einsum(
            "mk,kn->mn", x, [q, r], axis_name="x", gather="k", schedule=schedule
        )

    def run(x: Any) -> Any:
        grad = jax.grad(lambda x: sum(jnp.sin(y).sum() for y in product(x)))(x[0])
        return jax.vmap(product)(x), grad

    mesh = mesh_of((N,), "x")
    found, grad = on_devices(mesh, X, run, x)
    whole = np.concatenate(list(wide(x)), axis=-1)
    slope = 0.0
    for y, each in zip(found, (q, r), strict=True):
        stood_for = wide(each.values) * wide(each.scale)
        assert_close({"": y}, np.stack([whole @ stood_for] * N), dtype=np.float32)
        slope = slope + N * np.cos(whole[0] @ stood_for) @ stood_for.T
    assert_close({"": grad}, np.stack(np.split(slope, N, axis=1)), dtype=np.float32)

    text = hlo(mesh, X, lambda x: list(product(x[0])), x)
    scaled = [line for line in text.splitlines() if "stablehlo.multiply" in line]
    rows = [line.split("tensor<")[-1].split("x")[0] for line in scaled if "xf32>" in line]
    assert rows == ["2", "2", "4", "4"], scaled


CHUNKS = ce.Schedule("chunked", "latency", chunks=2, label="m")


def _scaled(x: Any, values: Any, scale: Any) -> Any:
    """A gather of int8 weights' lhs in two chunks, each scaled by its dot, and of a matrix beside it."""
    weights = [Quantized(values, scale, jnp.dtype(jnp.float32)), jnp.ones((16, 3))]
    return ce.all_gather_einsum("mk,kn->mn", x, weights, axis_name="x", gather="k", schedule=CHUNKS)


@pytest.mark.parametrize("mapped", ["x", "values", "scale", "x scale", "values scale"])
def test_vmap_of_scaled_chunks(mesh_of: MeshOf, mapped: str) -> None:
    x, values = random((N, 2, 6, 4)), jnp.arange(-128, 128, dtype=jnp.int8).reshape(2, 16, 8)
    scale = jnp.asarray(np.exp(random((2, 1, 8), 1)))
    each = ("x", "values", "scale")
    axes = tuple(0 if name in mapped.split() else None for name in each)

    def run(x: Any) -> Any:
        operands = (x, values, scale)
        taken = [a if d == 0 else a[0] for a, d in zip(operands, axes, strict=True)]
        return jax.vmap(_scaled, axes)(*taken)

    y, beside = on_devices(mesh_of((N,), "x"), X, run, x)
    whole = np.concatenate(list(wide(x)), axis=-1)
    places = [[0, 1] if d == 0 else [0, 0] for d in axes]
    want = [whole[a] @ (wide(values)[b] * wide(scale)[c]) for a, b, c in zip(*places, strict=True)]
    assert_close({"": y}, np.stack([np.stack(want)] * N), dtype=np.float32)
    rows = [whole[a] @ np.ones((16, 3)) for a in places[0]]
    assert_close({"": beside}, np.stack([np.stack(rows)] * N), dtype=np.float32)


def test_scales_of_chunks_are_differentiable(mesh_of: MeshOf) -> None:
    x, q = random((N, 6, 4)), quantize(jnp.asarray(random((16, 8), 1)), 0)

    def run(x: Any) -> Any:
        def loss(x: Any, scale: Any) -> Any:
            y, beside = _scaled(x, q.values, scale)
            return jnp.sum(jnp.sin(y)) + jnp.sum(beside)

        slopes = jax.grad(loss, (0, 1))(x, q.scale)
        # Forwards: along x, along the scale, and along both.
        tangents = [(x, jnp.zeros_like(q.scale)), (jnp.zeros_like(x), q.scale), (x, q.scale)]
        forwards = [jax.jvp(loss, (x, q.scale), each)[1][None] for each in tangents]
        return slopes, forwards

    (by_x, by_scale), forwards = on_devices(mesh_of((N,), "x"), X, run, x)
    whole, values, scale = np.concatenate(list(wide(x)), axis=-1), wide(q.values), wide(q.scale)
    slope = np.cos(whole @ (values * scale))
    along_scale = np.sum(slope * (whole @ values), axis=0, keepdims=True)
    along_x = slope @ (values * scale).T + 3
    # All devices have one scale, and each a loss.
    assert_close({"": by_scale}, N * np.stack([along_scale] * N), dtype=np.float32)
    assert_close({"": by_x}, N * np.stack(np.split(along_x, N, axis=1)), dtype=np.float32)
    dx, ds = np.sum(along_x * whole), np.sum(along_scale * scale)
    for found, want in zip(forwards, (dx, ds, dx + ds), strict=True):
        np.testing.assert_allclose(wide(found), want, rtol=1e-5)


def test_scales_that_differ_where_products_are_summed_are_refused(mesh_of: MeshOf) -> None:
    x, w = random((N, 3, 8)), random((N, 8, 4), 1)
    q = quantize(jnp.asarray(w), 1)

    def run(x: Any, q: Any) -> Any:
        words = r"scale of 'kn' varies over the axis 'x', .*; quantize the whole array"
        with pytest.raises(ValueError, match=words):
            ce.einsum_reduce_scatter("mk,kn->mn", x, q, axis_name="x", scatter="n")
        with pytest.raises(ValueError, match=words):
            ce.einsum_all_reduce("mk,kn->mn", x, q, axis_name="x")
        with pytest.raises(ValueError, match=words):
            ce.all_gather_einsum("mk,kn->mn", jnp.tile(x, N), q, axis_name="x", gather="k")
        # Not summed over devices: whose weights these are is their own affair.
        return ce.all_gather_einsum("mk,kn->mn", x[:, :2], q, axis_name="x", gather="k")

    y = on_devices(mesh_of((N,), "x"), X, run, x, q)
    stands_for = wide(q.values) * wide(q.scale)
    assert_close({"": y}, Case("mk,kn->mn", "k").expected(x[..., :2], stands_for, N))


def test_partition_specs_shard_values_and_scales(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy")
    x, w = random((3, 16)), random((16, 6), 1)
    q = quantize(jnp.asarray(w), 0)
    specs = q.partition_specs(P("x", "y"))

    def run(x: Any, q: Any) -> Any:
        # Weights gathered over x: int8 shards, whose scale every device along x has.
        return ce.all_gather_einsum(
            "mk,kn->mn", x, q, axis_name="x", gather="k", schedule="latency"
        )

    program = jax.shard_map(
        run, mesh=mesh, in_specs=(P(), specs), out_specs=P(None, "y"), check_vma=False
    )
    want = wide(x) @ (wide(q.values) * wide(q.scale))
    np.testing.assert_allclose(jax.jit(program)(x, q), want, rtol=1e-4, atol=1e-4)
    # In a scan over stacked weights, and a vmap over them.
    stack = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), q)

    def scanned(x: Any, stack: Any) -> Any:
        layers = jax.lax.scan(lambda c, q: (c, run(x, q)), 0, stack)[1]
        return layers, jax.vmap(lambda q: run(x, q))(stack)

    in_specs = (
        P(),
        jax.tree.map(lambda spec: P(None, *spec), specs, is_leaf=lambda s: isinstance(s, P)),
    )
    program = jax.shard_map(
        scanned, mesh=mesh, in_specs=in_specs, out_specs=P(None, None, "y"), check_vma=False
    )
    by_scan, by_vmap = jax.jit(program)(x, stack)
    np.testing.assert_allclose(by_scan[0], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(by_vmap, by_scan, rtol=1e-5, atol=1e-5)


def test_what_parts_of_tiles_are_gathered_to_is_laid_out_in_rows(mesh_of: MeshOf) -> None:
    # For dots of int8 weights on v4, of 128 rows and more; by chunks, and by a ring's minor axes.
    x, q = random((N, 128, 6)), quantize(jnp.asarray(random((24, 8), 1)), 0)
    chunked = [Schedule("chunked", way, chunks=1) for way in ("latency", "async")]
    kinds = [*chunked, Schedule("ring", "latency")]

    def run(x: Any, chip: Any = ce.TPU_V4) -> Any:
        options: Any = {"axis_name": ("x", "y"), "gather": "k", "chip": chip}
        return {
            str(kind): ce.all_gather_einsum("mk,kn->mn", x, q, schedule=kind, **options)
            for kind in kinds
        }

    mesh = mesh_of((2, 2), "xy")
    want = np.concatenate(list(wide(x)), axis=-1) @ (wide(q.values) * wide(q.scale))
    got = on_devices(mesh, ("x", "y"), run, x)
    assert_close(got, np.stack([want] * N), dtype=np.float32)

    def layouts(chip: Any, x: Any = x) -> int:
        return hlo(mesh, ("x", "y"), lambda x: run(x, chip), x).count("LayoutConstraint")

    assert layouts(ce.TPU_V4) == len(kinds)
    assert layouts(ce.TPU_V5P) == layouts(ce.TPU_V4, x[:, :64]) == 0
