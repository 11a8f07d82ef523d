"""What checkpoint policies save: dots and names, counted in the program of the gradient."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MeshOf = Callable[..., Mesh]
Counts = tuple[int, int]

POLICIES = jax.checkpoint_policies
X, W, V = (
    np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    for seed, shape in enumerate([(8, 16), (16, 32), (32, 16)])
)
COLUMNS, ROWS = P(None, "x"), P("x")
RING = "unidirectional"


def of_global_arrays(mesh: Mesh, explicit: bool) -> Callable[..., Any]:
    """Two layers: the first gathers, the second scatters."""

    def einsum(spec: str, x: Any, w: Any, rows: P) -> jax.Array:
        options: Any = {} if explicit else {"in_specs": (COLUMNS, rows), "mesh": mesh}
        return ce.einsum(spec, x, w, out_sharding=COLUMNS, schedule=RING, **options)

    return lambda x, w, v: einsum("bf,fe->be", jnp.sin(einsum("be,ef->bf", x, w, COLUMNS)), v, ROWS)


def of_shards(x: Any, w: Any, v: Any) -> Any:
    """The same, inside shard_map."""
    h = ce.all_gather_einsum("be,ef->bf", x, w, axis_name="x", gather="e", schedule=RING)
    return ce.einsum_reduce_scatter(
        "bf,fe->be", jnp.sin(h), v, axis_name="x", scatter="e", schedule=RING
    )


def of_collectives(x: Any, w: Any, v: Any) -> Any:
    """The same of collectives and plain dots."""
    h = jnp.sin(ce.all_gather(x, "x", axis=1, schedule=RING) @ w)
    return ce.reduce_scatter(h @ v, "x", scatter_dimension=1, schedule=RING)


def gradient(layers: Callable[..., Any], policy: Any) -> Any:
    """The jitted gradient of a loss under a policy; of none without a checkpoint."""
    rematted = layers if policy is None else jax.checkpoint(layers, policy=policy)
    return jax.jit(jax.grad(lambda *xs: jnp.sin(rematted(*xs)).sum(), (0, 1, 2)))


def counts(layers: Callable[..., Any], policy: Any, *operands: Any) -> Counts:
    """Permutes and dots of the gradient."""
    text = gradient(layers, policy).lower(*operands).as_text()
    permutes, dots = (
        len(re.findall(rf"stablehlo\.{op}\b", text)) for op in ("collective_permute", "dot_general")
    )
    return permutes, dots


def is_right(layers: Callable[..., Any], policy: Any, *operands: Any) -> bool:
    """Whether the gradient is that of plain arrays."""
    want = jax.grad(lambda x, w, v: jnp.sin(jnp.sin(x @ w) @ v).sum(), (0, 1, 2))(X, W, V)
    got = gradient(layers, policy)(*operands)
    return all(np.allclose(a, b, rtol=2e-4, atol=2e-4) for a, b in zip(got, want, strict=True))


EINSUM = ("ce.einsum",)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_global_arrays(mesh_of: MeshOf, explicit: bool) -> None:
    mesh = mesh_of((4,), "x", explicit)
    with jax.set_mesh(mesh):
        specs = (COLUMNS, COLUMNS, ROWS)
        operands = [jax.device_put(a, p) for a, p in zip((X, W, V), specs, strict=True)]
        layers = of_global_arrays(mesh, explicit)
        saved = counts(layers, None, *operands)
        # The first einsum again: the sine's derivative needs its result. A ring of four.
        again = counts(layers, POLICIES.nothing_saveable, *operands)
        assert again == (saved[0] + 3, saved[1] + 4)
        for policy in (
            POLICIES.dots_saveable,
            POLICIES.dots_with_no_batch_dims_saveable,
            POLICIES.everything_saveable,
            POLICIES.save_only_these_names(*EINSUM),
            POLICIES.save_from_both_policies(
                POLICIES.dots_saveable, POLICIES.save_only_these_names("other")
            ),
        ):
            assert counts(layers, policy, *operands) == saved
        assert is_right(layers, POLICIES.dots_saveable, *operands)
        for policy in (
            POLICIES.save_only_these_names("other"),
            POLICIES.save_any_names_but_these(*EINSUM),
        ):
            assert counts(layers, policy, *operands) == again


@pytest.mark.parametrize(
    ("layers", "names", "dots"),
    [
        (of_shards, ("ce.all_gather_einsum", "ce.einsum_reduce_scatter"), True),
        (of_collectives, ("ce.all_gather", "ce.reduce_scatter"), False),
    ],
)
def test_shards(
    mesh_of: MeshOf, layers: Callable[..., Any], names: tuple[str, ...], dots: bool
) -> None:
    mesh = mesh_of((4,), "x")

    def mapped(function: Callable[..., Any]) -> Callable[..., Any]:
        specs = (COLUMNS, COLUMNS, ROWS)
        return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=COLUMNS)

    saved = counts(mapped(layers), None, X, W, V)
    again = counts(mapped(layers), POLICIES.nothing_saveable, X, W, V)
    assert again[0] == saved[0] + 3
    by_name = POLICIES.save_only_these_names(*names)
    # A collective's result that is saved need not be sent again; a dot is not one.
    assert counts(mapped(layers), by_name, X, W, V)[0] == saved[0]
    assert is_right(mapped(layers), by_name, X, W, V)
    inside = mapped(jax.checkpoint(layers, policy=by_name))
    assert counts(inside, None, X, W, V)[0] == saved[0]
    by_dots = counts(mapped(layers), POLICIES.dots_saveable, X, W, V)
    assert by_dots == (saved if dots else (again[0], saved[1]))


def test_a_batch_is_no_dot_without_one(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4,), "x")
    x, w = np.ones((4, 8, 16), np.float32), np.ones((4, 16, 16), np.float32)

    def layers(x: Any, w: Any) -> Any:
        specs = (P("x"), P("x"))
        return jnp.sin(
            ce.einsum("bij,bjk->bik", x, w, mesh=mesh, in_specs=specs, out_sharding=P("x"))
        )

    def dots(policy: Any) -> int:
        grad = jax.value_and_grad(lambda x, w: jax.checkpoint(layers, policy=policy)(x, w).sum())
        return jax.jit(grad).lower(x, w).as_text().count("stablehlo.dot_general")

    assert dots(POLICIES.dots_saveable) == 2
    assert dots(POLICIES.dots_with_no_batch_dims_saveable) == 3
