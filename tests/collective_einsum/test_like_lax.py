"""The collectives take what lax's take: pytrees, numbers, and the same names of arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from .oracle import MeshOf

PAIRS: dict[str, tuple[Any, Any]] = {
    "all_gather": (ce.all_gather, lax.all_gather),
    "reduce_scatter": (ce.reduce_scatter, lax.psum_scatter),
    "all_to_all": (ce.all_to_all, lax.all_to_all),
    "all_reduce": (ce.all_reduce, lax.psum),
}
# Lax's keyword arguments, tiled where there is a choice.
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("all_gather", {"axis": 0, "tiled": True}),
    ("all_gather", {"axis": 1, "tiled": True, "axis_index_groups": None}),
    ("reduce_scatter", {"scatter_dimension": 0, "tiled": True}),
    ("reduce_scatter", {"scatter_dimension": 1, "tiled": True, "axis_index_groups": None}),
    ("all_to_all", {"split_axis": 0, "concat_axis": 1, "tiled": True}),
    ("all_to_all", {"split_axis": 1, "concat_axis": 0, "tiled": True, "axis_index_groups": None}),
    ("all_reduce", {"axis_index_groups": None}),
]
SCHEDULES = ("auto", "blocking", "latency")


def on_mesh(mesh_of: MeshOf, function: Callable[..., Any], *args: Any) -> Any:
    mapped = jax.shard_map(
        function, mesh=mesh_of((4,), "t"), in_specs=P(), out_specs=P("t"), check_vma=False
    )
    return jax.jit(mapped)(*args)


def tree() -> Any:
    def x(*shape: int) -> Any:
        return jnp.arange(float(np.prod(shape))).reshape(shape)

    return {"a": (x(4, 8), [x(8, 4, 2)]), "none": None, "empty": (), "b": x(8, 8) + 1}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_of_a_pytree(mesh_of: MeshOf, name: str, arguments: dict[str, Any], schedule: str) -> None:
    ours, theirs = PAIRS[name]

    def both(x: Any) -> Any:
        x = jax.tree.map(lambda leaf: leaf * (1.0 + lax.axis_index("t").astype(jnp.float32)), x)
        return ours(x, axis_name="t", schedule=schedule, **arguments), theirs(
            x, axis_name="t", **arguments
        )

    got, want = on_mesh(mesh_of, both, tree())
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_a_tuple_is_not_stacked(mesh_of: MeshOf) -> None:
    def reduced(x: Any) -> Any:
        return ce.all_reduce((x, 2 * x), "t")

    first, second = on_mesh(mesh_of, reduced, jnp.ones((3, 2)))
    assert first.shape == second.shape == (12, 2)
    np.testing.assert_array_equal(second, np.full((12, 2), 8.0))


def test_a_number_counts_devices(mesh_of: MeshOf) -> None:
    def counted(x: Any) -> Any:
        ours, theirs = ce.all_reduce((1, 0.5, 2j), "t"), lax.psum((1, 0.5, 2j), "t")
        assert ours == theirs
        # A number, of which a shape can be made.
        return jnp.ones(ce.all_reduce(1, "t")) + x

    assert on_mesh(mesh_of, counted, jnp.ones(())).shape == (16,)


def test_gradients_of_a_pytree(mesh_of: MeshOf) -> None:
    def grads(x: Any) -> Any:
        def loss(x: Any, reduce: Any) -> Any:
            one, two = reduce((x, x**2), "t")
            return jnp.sum(jnp.sin(one) * two)

        return jax.grad(loss)(x, ce.all_reduce), jax.grad(loss)(x, lax.psum)

    ours, theirs = on_mesh(mesh_of, grads, jnp.arange(8.0))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("name", PAIRS)
def test_arguments_have_lax_s_names(name: str) -> None:
    ours, theirs = (inspect.signature(each).parameters for each in PAIRS[name])
    for i, (parameter, known) in enumerate(theirs.items()):
        # `to` is what types say of the result; here shard_map's types say it.
        if parameter == "to":
            continue
        assert ours[parameter].kind == known.kind
        if known.kind == known.POSITIONAL_OR_KEYWORD:
            assert list(ours)[i] == parameter


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda x: ce.all_gather(x, "t", axis=1, tiled=False),
            r"tiled=False .*expand_dims\(x, 1\)",
        ),
        (lambda x: ce.reduce_scatter(x, "t", tiled=False), r"tiled=False .*jnp.squeeze\(y, 0\)"),
        (lambda x: ce.all_to_all(x, "t", 0, 0, tiled=False), r"tiled=False .*lax.all_to_all"),
        *(
            (
                lambda x, each=each, rest=rest: each(
                    x, "t", *rest, axis_index_groups=[[0, 1], [2, 3]]
                ),
                r"axis_index_groups=\[\[0, 1\], \[2, 3\]\].*or use lax\.",
            )
            for each, rest in (
                (ce.all_gather, ()),
                (ce.reduce_scatter, ()),
                (ce.all_to_all, (0, 0)),
                (ce.all_reduce, ()),
            )
        ),
        (
            lambda x: ce.all_gather({"w": ce.quantize(x, axis=0)}, "t"),
            r"all_gather over axis 't': a Quantized .*\.values and \.scale",
        ),
        (lambda x: ce.all_reduce(["word", x], "t"), "dtype|word"),
    ],
)
def test_what_does_not_serve_is_refused_in_words(mesh_of: MeshOf, call: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        on_mesh(mesh_of, call, jnp.ones((4, 4)))


def test_the_advice_gives_what_lax_gives(mesh_of: MeshOf) -> None:
    def both(x: Any) -> Any:
        x = x * lax.axis_index("t").astype(jnp.float32)
        return [
            (ce.all_gather(jnp.expand_dims(x, 1), "t", axis=1), lax.all_gather(x, "t", axis=1)),
            (jnp.squeeze(ce.reduce_scatter(x, "t"), 0), lax.psum_scatter(x, "t")),
        ]

    for ours, theirs in on_mesh(mesh_of, both, jnp.arange(12.0).reshape(4, 3)):
        np.testing.assert_array_equal(ours, theirs)
