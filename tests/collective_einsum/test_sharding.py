"""What einsum says about meshes and shardings that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

MeshOf = Callable[..., Mesh]

X, W = np.ones((8, 16), np.float32), np.ones((16, 12), np.float32)


def refused(*words: str, spec: str = "be,ef->bf", x: Any = X, w: Any = W, **options: Any) -> None:
    """The einsum raises ValueError, whose message has all the words."""
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the words are checked below
        jax.jit(lambda x, w: ce.einsum(spec, x, w, **options))(x, w)
    for word in (spec, *words):
        assert word in str(error.value), f"{word!r} is not in {error.value}"


def test_no_mesh() -> None:
    refused("no mesh is known", "pass mesh=", "jax.set_mesh(mesh)", in_specs=(P(), P()))


def test_no_specs_on_auto_axes(mesh_of: MeshOf) -> None:
    refused("mesh axes ('x', 'y') are Auto", "pass in_specs=", mesh=mesh_of((4, 2), "xy"))


@pytest.mark.parametrize("in_specs", [P(), (P(),), (P(), P(), P())])
def test_in_specs_that_are_no_pair(mesh_of: MeshOf, in_specs: Any) -> None:
    refused("in_specs must be a pair of PartitionSpecs", mesh=mesh_of((4,), "x"), in_specs=in_specs)


def test_what_is_no_mesh() -> None:
    refused("mesh='x' is no jax.sharding.Mesh", mesh="x", in_specs=(P(), P()))


def test_two_meshes(mesh_of: MeshOf) -> None:
    refused(
        "the mesh of mesh= has axes 'x' of size 4",
        "that of out_sharding has 'x' of size 2, 'y' of size 2; use one mesh for all",
        mesh=mesh_of((4,), "x"), in_specs=(P(), P()),
        out_sharding=NamedSharding(mesh_of((2, 2), "xy"), P()),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lhs", "rhs", "out", "words"),
    [
        (P("q"), P(), P(), ["lhs names axis 'q'", "does not have", "'x' of size 4, 'y' of size 2"]),
        (P(), P(None, "q"), P(), ["rhs names axis 'q'"]),
        (P(), P(), P("q"), ["the result names axis 'q'"]),
        (P("x", "x"), P(), P(), ["uses axis 'x' twice, for 'b' and 'e'"]),
        (P(("y", "y")), P(), P(), ["uses axis 'y' twice, for 'b' and 'b'"]),
        (P("x", None, "y"), P(), P(), ["3 entries", "'be' has 2 dimension(s)", "(8, 16)"]),
        (P(), P(), P(None, None, "x"), ["3 entries", "'bf' has 2 dimension(s)", "(8, 12)"]),
        (P(), P(None, ("x", "y")), P(), ["divides label 'f' of size 12 by ('x', 'y') of size 8"]),
        (P(), P(), P(None, ("x", "y")), ["pad 'f' to 16, or shard another dimension"]),
        (P(P.UNCONSTRAINED), P(), P(), ["UNCONSTRAINED", "name its mesh axes, or None"]),
        (P(unreduced=frozenset("x")), P(), P(), ["unreduced", "jax.reshard"]),
        (None, P(), P(), ["the sharding of lhs must be a jax.P, got None"]),
        (P(), "x", P(), ["the sharding of rhs must be a jax.P, got 'x'"]),
        (P(), P(), "x", ["the sharding of the result must be a jax.P, got 'x'"]),
    ],
)
def test_sharding(mesh_of: MeshOf, lhs: Any, rhs: Any, out: Any, words: list[str]) -> None:
    mesh = mesh_of((4, 2), "xy")
    refused(*words, mesh=mesh, in_specs=(lhs, rhs), out_sharding=out)


@pytest.mark.parametrize(
    ("lhs", "rhs", "words"),
    [
        (P(None, "x"), P("x"), ["label 'e' is summed over and sharded in both operands"]),
        (P(None, "x"), P("y"), ["over ('x',) and ('y',)", "give out_sharding"]),
        (P("x"), P(None, "x"), ["axis 'x' shards 'b' of one operand and 'f' of the other"]),
    ],
)
def test_ambiguous_results(mesh_of: MeshOf, lhs: P, rhs: P, words: list[str]) -> None:
    refused(*words, mesh=mesh_of((4, 2), "xy"), in_specs=(lhs, rhs))
    mesh = mesh_of((4, 2), "xy", explicit=True)
    with jax.set_mesh(mesh):
        x, w = (jax.device_put(v, s) for v, s in ((X, lhs), (W, rhs)))
        refused(*words, x=x, w=w)
        # jnp.einsum cannot tell either.
        with pytest.raises(Exception, match="shard"):
            jnp.einsum("be,ef->bf", x, w)


def test_a_batch_label_over_different_axes(mesh_of: MeshOf) -> None:
    refused(
        "label 'b' is sharded over ('x',) in lhs and over ('y',) in rhs",
        spec="bi,bj->bij", w=np.ones((8, 4), np.float32), mesh=mesh_of((4, 2), "xy"),
        in_specs=(P("x"), P("y")),
    )  # fmt: skip


def test_in_specs_against_explicit_types(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy", explicit=True)
    with jax.set_mesh(mesh):
        x, w = jax.device_put(X, P("x")), jax.device_put(W, P())
        refused(
            "for lhs", "its type says", "leave in_specs out", "jax.reshard",
            x=x, w=w, in_specs=(P("y"), P()),
        )  # fmt: skip
        ce.einsum("be,ef->bf", x, w, in_specs=(P("x"), P()))


def test_manual_axes(mesh_of: MeshOf) -> None:
    mesh = mesh_of((4, 2), "xy")

    def inner(x: Any) -> jax.Array:
        return ce.einsum("be,ef->bf", x, W, in_specs=(P(None, "x"), P()))

    outer = jax.shard_map(inner, mesh=mesh, in_specs=P("x"), out_specs=P("x"), axis_names={"x"})
    with pytest.raises(ValueError, match="'x', which a surrounding shard_map has made manual"):
        jax.jit(outer)(X)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((8, 16), (12, 4)), ["label 'e' is 16 in lhs, of shape (8, 16), and 12 in rhs"]),
        (((8, 16, 1), (16, 4)), ["'be' asks for 2 dimensions"]),
        (((8, 0), (5, 4)), ["label 'e' is 0 in lhs, of shape (8, 0), and 5 in rhs"]),
    ],
)
def test_shapes(mesh_of: MeshOf, shapes: Any, words: list[str]) -> None:
    x, w = (np.ones(shape, np.float32) for shape in shapes)
    refused(*words, x=x, w=w, mesh=mesh_of((4,), "x"), in_specs=(P(), P()))


def test_dtypes(mesh_of: MeshOf) -> None:
    options: Any = {"mesh": mesh_of((4,), "x"), "in_specs": (P(None, "x"), P("x"))}
    whole = {"x": X.astype(np.int8), "w": W.astype(np.int8)}
    refused("integer overflow", "16 products of int8 and int8", **whole, **options)
    refused("lhs is bool", x=X > 0, **options)


def test_scales_along_a_summed_label(mesh_of: MeshOf) -> None:
    """Even where each device has one row, and so one scale."""
    w = ce.quantize(W, 1)
    refused("'e', which is summed over", w=w, mesh=mesh_of((8,), "x"), in_specs=(P(), P("x")))


def test_schedules(mesh_of: MeshOf) -> None:
    options: Any = {"mesh": mesh_of((8,), "x"), "in_specs": (P("x"), P())}
    with pytest.raises(ValueError, match="schedule='fast' is unknown"):
        ce.einsum("be,ef->bf", X, W, schedule="fast", **options)
    # Every device has one row of eight, which has no halves.
    with pytest.raises(ValueError, match="cannot be halved"):
        ce.einsum("be,ef->bf", X, W, schedule="bidirectional", out_sharding=P(), **options)
