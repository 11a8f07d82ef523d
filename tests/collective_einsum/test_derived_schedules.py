"""Under "auto", a derived einsum runs under a schedule of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.ops.einsum_op import Operation

AXES = {"d": 16, "t": 4}
BF16 = jnp.bfloat16


def shaped(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, BF16)


def operations(jaxpr: Any) -> Iterator[Any]:
    """The ops of our primitive, in the order of the program."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "collective_einsum":
            yield eqn.params["op"]
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from operations(inner)


def schedules(product: Any, wanted: Any, *operands: Any) -> list[Any]:
    """What an einsum and its gradients run under, as (gathered, scattered, schedule)."""
    mesh = AbstractMesh(tuple(AXES.values()), tuple(AXES))

    def local(*operands: Any) -> Any:
        def loss(*operands: Any) -> Any:
            return sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(product(*operands)))

        return jax.grad(loss, wanted)(*operands)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    ops = list(operations(jax.make_jaxpr(mapped)(*operands)))
    return [
        (op.gather and op.gather.label, op.scatter and op.scatter.label, op.schedule)
        if isinstance(op, Operation)
        else (op.kind, None, op.schedule)
        for op in ops
    ]


def chosen(text: str, lhs: Any, rhs: Any, **collective: Any) -> Schedule:
    return ce.choose_schedule(
        text, lhs, rhs, axis_name="t", axis_size={"t": 4}, chip="v5p", **collective
    ).schedule


X, H, W = shaped(4096, 1024), shaped(4096, 3584), shaped(3584, 4096)


def down(schedule: str = "auto") -> Any:
    def product(h: Any, w: Any) -> Any:
        return ce.einsum_reduce_scatter(
            "rf,fm->rm", h, w, axis_name="t", scatter="m", chip="v5p", schedule=schedule
        )

    return product


def test_the_gradient_of_a_scatter_gathers_under_a_schedule_of_its_own() -> None:
    found = schedules(down(), (0, 1), H, W)
    assert found[0] == (None, "m", chosen("rf,fm->rm", H, W, scatter="m"))
    assert ("m", None, chosen("rm,fm->rf", X, W, gather="m")) in found
    # The dot that makes the gradient of w waits for the whole cotangent.
    assert ("all_gather", None, Schedule("blocking")) in found


def test_the_schedule_of_a_gradient_may_be_another_one() -> None:
    differing = 0
    for rows in (256, 512, 1024, 2048, 4096, 8192):
        found = schedules(down(), 0, shaped(rows, 3584), W)
        forward, backward = (
            chosen("rf,fm->rm", shaped(rows, 3584), W, scatter="m"),
            chosen("rm,fm->rf", shaped(rows, 1024), W, gather="m"),
        )
        assert [schedule for _, _, schedule in found] == [forward, backward]
        differing += forward != backward
    assert differing


def test_the_gradient_of_a_gather_that_several_share_is_one_sum() -> None:
    up = shaped(4096, 3584)

    def both(x: Any, w: Any, v: Any) -> Any:
        return ce.all_gather_einsum("rm,mf->rf", x, [w, v], axis_name="t", gather="m", chip="v5p")

    forward, of_x = schedules(both, 0, X, up, up)
    assert forward[2] == chosen("rm,mf->rf", X, [up, up], gather="m")
    # Two products that are added up are one of twice the contraction.
    twice = shaped(4096, 2 * 3584), shaped(4096, 2 * 3584)
    assert of_x == (None, "m", chosen("rf,mf->rm", *twice, scatter="m"))


@pytest.mark.parametrize("named", ["blocking", "latency", "unidirectional"])
def test_a_named_schedule_is_that_of_the_gradients_too(named: str) -> None:
    found = schedules(down(named), (0, 1), H, W)
    assert {str(schedule) for _, _, schedule in found} == {named}
    assert [gathered for gathered, _, _ in found].count("all_gather") == 1


def test_cotangents_that_a_dot_waits_for_are_gathered_by_lax() -> None:
    """Of a gather and a scatter with several results, each cotangent is gathered before its product."""
    w = shaped(4096, 256)

    def both(x: Any, w: Any, v: Any) -> Any:
        return ce.all_gather_einsum_reduce_scatter(
            "rm,mf->rf",
            x,
            [w, v],
            gather_axis_name="t",
            gather="m",
            scatter_axis_name="d",
            scatter="r",
            chip="v5p",
        )

    mesh = AbstractMesh(tuple(AXES.values()), tuple(AXES))

    def local(x: Any, w: Any, v: Any) -> Any:
        return jax.grad(lambda x: sum(jnp.sum(jnp.sin(y)) for y in both(x, w, v)))(x)

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    ops = list(operations(jax.make_jaxpr(mapped)(X, w, w)))
    gathers = [op for op in ops if getattr(op, "kind", "") == "all_gather"]
    assert [str(op.schedule) for op in gathers] == ["blocking"] * 2
