"""Programs for 1,024 devices: of a size that grows with their number, not with its square."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum.chips import compile_context as compiling

MESHES = ((1024,), (32, 32), (8, 8, 16))
EINSUM = "mk,kn->mn"


def lowered(sizes: tuple[int, ...], run: Any, *shapes: tuple[int, ...]) -> str:
    """The program for a v4 slice, of arrays that are the same on every chip."""
    names = tuple("xyz"[: len(sizes)])
    device = AbstractDevice("TPU v4", None, "tpu")
    mesh = AbstractMesh(sizes, names, (AxisType.Auto,) * len(sizes), abstract_device=device)
    mapped = jax.shard_map(
        lambda *args: run(names if len(names) > 1 else "x", *args),
        mesh=mesh,
        in_specs=(P(),) * len(shapes),
        out_specs=P(),
        check_vma=False,
    )
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    return jax.jit(mapped).trace(*args).lower(lowering_platforms=("tpu",)).as_text()


ROWS = 4096
PROGRAMS: dict[str, Any] = {
    "all_gather": (lambda axes, x: ce.all_gather(x, axes), (4, 128)),
    "reduce_scatter": (lambda axes, x: ce.reduce_scatter(x, axes), (ROWS, 128)),
    "all_reduce": (lambda axes, x: ce.all_reduce(x, axes), (ROWS, 128)),
    "all_to_all": (lambda axes, x: ce.all_to_all(x, axes, 0, 1), (ROWS, 128)),
    "all_gather_fold": (
        lambda axes, x: ce.all_gather_fold(
            lambda total, shard, _: total + shard, jnp.zeros_like(x), x, axis_name=axes
        ),
        (4, 128),
    ),
    "all_gather_einsum": (
        lambda axes, x, w: ce.all_gather_einsum(EINSUM, x, w, axis_name=axes, gather="m"),
        (64, 4096),
        (4096, 4096),
    ),
    "all_gather_einsum, of weights": (
        lambda axes, x, w: ce.all_gather_einsum(EINSUM, x, w, axis_name=axes, gather="k"),
        (64, 4096),
        (4, 4096),
    ),
    "all_gather_einsum, round all": (
        lambda axes, x, w: ce.all_gather_einsum(
            EINSUM, x, w, axis_name=axes, gather="m", schedule="latency"
        ),
        (8, 128),
        (128, 128),
    ),
    "einsum_reduce_scatter": (
        lambda axes, x, w: ce.einsum_reduce_scatter(EINSUM, x, w, axis_name=axes, scatter="m"),
        (2 * ROWS, 4096),
        (4096, 4096),
    ),
    "einsum_all_reduce": (
        lambda axes, x, w: ce.einsum_all_reduce(EINSUM, x, w, axis_name=axes),
        (512, 4096),
        (4096, 4096),
    ),
}


@pytest.mark.parametrize(
    ("mesh", "knowing"), [*((mesh, False) for mesh in MESHES), (MESHES[0], True)], ids=str
)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_do_not_grow_with_the_square_of_devices(
    name: str, mesh: tuple[int, ...], knowing: bool
) -> None:
    run, *shapes = PROGRAMS[name]
    with compiling.knowing_options() if knowing else contextlib.nullcontext():
        text = lowered(mesh, run, *shapes)
    # Each permute lists all devices; there are as many as hops along unrolled sides, there and back
    # for each order of the axes.
    hops = sum(side if side < 16 else 4 for side in mesh)
    assert text.count("collective_permute") <= 2 * 4 * len(mesh) * hops
    assert len(text) < 7e6
    assert "1024x1024x" not in text


@pytest.mark.parametrize(("n", "rings"), [(8, True), (64, True), (128, False), (1024, False)])
def test_an_all_to_all_of_many_is_lax_s(n: int, rings: bool) -> None:
    text = lowered((n,), *PROGRAMS["all_to_all"])
    assert ("collective_permute" in text) == rings
    assert ("stablehlo.all_to_all" in text) != rings
