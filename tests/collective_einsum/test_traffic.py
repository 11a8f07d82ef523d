"""What einsum sends: the collectives in the program that jax hands to the compiler."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MeshOf = Callable[..., Mesh]

Specs = tuple[P, P, P]
ROWS, SHARED, COLUMNS = 8, 16, 32
NAMES = "all_gather|all_reduce|all_to_all|collective_permute|reduce_scatter"


def program(specs: Specs, mesh: Mesh, schedule: str | ce.Schedule) -> Callable[..., jax.Array]:
    def einsum(x: Any, w: Any) -> jax.Array:
        return ce.einsum(
            "be,ef->bf", x, w, in_specs=specs[:2], out_sharding=specs[2], mesh=mesh,
            schedule=schedule,
        )  # fmt: skip

    return einsum


def sent(function: Callable[..., Any], w: Any = None) -> list[str]:
    """Each collective, and what a device puts in."""
    x = jnp.ones((ROWS, SHARED))
    text = jax.jit(function).lower(x, jnp.ones((SHARED, COLUMNS)) if w is None else w).as_text()
    pattern = rf"stablehlo\.({NAMES})\b.*?\(tensor<(\w+)>\) ->"
    return sorted(" ".join(found) for found in re.findall(pattern, text, re.DOTALL))


TWO = P(None, ("x", "y")), P("x", "y")
BLOCKING = {
    "none": ((P("x"), P(None, "y"), P("x", "y")), []),
    "both ends": ((*TWO, P(None, ("y", "x"))), ["all_gather 8x2xf32", "reduce_scatter 8x16xf32"]),
    "another order of shards": (
        (*TWO, P(None, ("x", "y"))),
        ["all_gather 8x2xf32", "collective_permute 8x4xf32", "reduce_scatter 8x16xf32"],
    ),
    "weights": ((P(("x", "y")),) * 3, ["all_gather 2x32xf32"]),
    "all-reduce": ((P(None, "x"), P("x"), P()), ["all_reduce 8x32xf32"]),
    "slices": ((P(), P(), P("x", "y")), []),
    "two scatters": (
        (P(None, ("x", "y")), P(("x", "y")), P("y", "x")),
        ["reduce_scatter 2x4x8xf32", "reduce_scatter 8x32xf32"],
    ),
    "swap": ((P("x"), P(), P(None, "x")), ["all_gather 2x16xf32"]),
}


@pytest.mark.parametrize(("specs", "want"), BLOCKING.values(), ids=BLOCKING)
def test_blocking(mesh_of: MeshOf, specs: Specs, want: list[str]) -> None:
    assert sent(program(specs, mesh_of((4, 2), "xy"), "blocking")) == want


def test_rings_send_shards_of_the_gathered_operand_and_of_the_result(mesh_of: MeshOf) -> None:
    mesh = mesh_of((8,), "x")
    gather = P(None, "x"), P(None, "x"), P(None, "x")
    assert sent(program(gather, mesh, "unidirectional")) == ["collective_permute 8x2xf32"] * 7
    scatter = P(None, "x"), P("x"), P(None, "x")
    assert sent(program(scatter, mesh, "unidirectional")) == ["collective_permute 8x4xf32"] * 7


def test_weights_move_as_int8(mesh_of: MeshOf) -> None:
    w = ce.quantize(jnp.ones((SHARED, COLUMNS)), 0)
    gather = P("x"), P(None, "x"), P("x")
    assert sent(program(gather, mesh_of((8,), "x"), "blocking"), w) == ["all_gather 16x4xi8"]


def test_sums_of_quantized_weights_move_in_the_dtype_of_the_result(mesh_of: MeshOf) -> None:
    w = ce.quantize(jnp.ones((SHARED, COLUMNS)), 0, stands_for=jnp.bfloat16)
    specs = P(None, "x"), P("x"), P(None, "x")
    wide = ce.Schedule("blocking", wire_dtype=jnp.float32)
    for schedule, dtype in (("blocking", "bf16"), (wide, "f32")):
        einsum = program(specs, mesh_of((8,), "x"), schedule)
        found = sent(lambda x, w, einsum=einsum: einsum(x.astype(jnp.bfloat16), w), w)
        assert found == [f"reduce_scatter 8x32x{dtype}"]


def test_backward_pass_is_the_mirrored_einsum(mesh_of: MeshOf) -> None:
    """Gathered forwards, x is gathered again for the gradient of w, and its own is scattered."""
    gather = P(None, "x"), P(None, "x"), P(None, "x")
    einsum = program(gather, mesh_of((8,), "x"), "blocking")
    found = sent(jax.grad(lambda x, w: einsum(x, w).sum(), (0, 1)))
    assert found == ["all_gather 8x2xf32", "reduce_scatter 8x16xf32"]
