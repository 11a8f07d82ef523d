"""einsum with dots of float8, and with dots that a caller puts in the place of lax's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce

from .exact import SPECS, MeshOf, W, X, equal, on

FLOAT8 = [
    (jnp.bfloat16, jnp.float8_e4m3fn),
    (jnp.float8_e4m3fn, jnp.float8_e5m2),
    (jnp.float32, jnp.float8_e5m2),
    (jnp.float16, jnp.float8_e4m3fn),
]


@pytest.mark.parametrize("dtypes", FLOAT8, ids=lambda pair: "-".join(d.__name__ for d in pair))
@pytest.mark.parametrize("schedule", ["auto", "latency"])
def test_float8_with_another_float(mesh_of: MeshOf, schedule: str, dtypes: Any) -> None:
    """Formats of 8 bits promote to nothing by themselves, and the result's dtype is given."""
    mesh = mesh_of((4, 2), "xy")
    x, w = (jnp.asarray(a).astype(d) for a, d in zip((X, W), dtypes, strict=True))

    def einsum(x: Any, w: Any) -> jax.Array:
        return ce.einsum(
            "ij,jk->ik", x, w, mesh=mesh, in_specs=SPECS[:2], out_sharding=P("x"),
            preferred_element_type=jnp.float32, schedule=schedule,
        )  # fmt: skip

    equal(jax.jit(einsum)(x, w), X @ W)
    grads = jax.jit(jax.grad(lambda x, w: einsum(x, w).sum() / 64, (0, 1)))(x, w)
    assert [g.dtype for g in grads] == [x.dtype, w.dtype]
    local = jax.shard_map(
        lambda x, w: ce.all_gather_einsum(
            "ij,jk->ik", x, w, axis_name="x", gather="i", schedule=schedule,
            preferred_element_type=jnp.float32,
        ),
        mesh=mesh, in_specs=(P("x"), P(None, "x")), out_specs=P(None, "x"),
    )  # fmt: skip
    equal(jax.jit(local)(x, w), X @ W)


def test_dots_of_your_own(mesh_of: MeshOf) -> None:
    def doubled(*args: Any, **options: Any) -> jax.Array:
        return 2 * jax.lax.dot_general(*args, **options)

    for explicit in (False, True):
        mesh = mesh_of((4, 2), "xy", explicit)
        x, w = on(mesh, X, SPECS[0]), on(mesh, W, SPECS[1])
        options: Any = {"out_sharding": NamedSharding(mesh, P("x"))}

        def einsum(x: Any, w: Any, options: Any = options, **more: Any) -> jax.Array:
            return ce.einsum("ij,jk->ik", x, w, **options, **more)

        with jax.set_mesh(mesh):
            got = jax.jit(lambda x, w, f=einsum: f(x, w, _dot_general=doubled))(x, w)
            equal(got, 2 * X @ W)
            assert got.sharding.is_equivalent_to(options["out_sharding"], 2)
            equal(einsum(x, w, _dot_general=jax.lax.dot_general, schedule="latency"), X @ W)
            for keyword, value in {
                "schedule": "latency", "wire_dtype": jnp.float32, "accumulator_dtype": jnp.float32,
            }.items():  # fmt: skip
                with pytest.raises(ValueError, match=rf"_dot_general.*leave {keyword} out"):
                    einsum(x, w, _dot_general=doubled, **{keyword: value})
    with pytest.raises(ValueError, match="dequantize"):
        ce.einsum("ij,jk->ik", X, ce.quantize(W, 0), _dot_general=doubled)


def test_whoever_replaces_the_dots_gets_them(
    mesh_of: MeshOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As qwix, which exchanges the code of jnp.einsum for the time of a call."""
    mesh = mesh_of((4, 2), "xy")
    x, w = on(mesh, X, SPECS[0]), on(mesh, W, SPECS[1])

    def quantizing(*args: Any, **options: Any) -> Any:
        # Code that is put in the place of another's sees that one's globals.
        from jax.numpy import matmul

        return 3 * matmul(*args[1:])

    monkeypatch.setattr(jnp.einsum, "__code__", quantizing.__code__)
    equal(ce.einsum("ij,jk->ik", x, w, out_sharding=P("x")), 3 * X @ W)
    with pytest.raises(ValueError, match=r"what replaces it.*leave schedule out"):
        ce.einsum("ij,jk->ik", x, w, schedule="latency")
    monkeypatch.undo()

    def doubled(*args: Any, **options: Any) -> jax.Array:
        return 2 * dot_general(*args, **options)

    dot_general = jax.lax.dot_general
    monkeypatch.setattr(jax.lax, "dot_general", doubled)
    equal(ce.einsum("ij,jk->ik", x, w, out_sharding=P("x")), 2 * X @ W)
    local = jax.shard_map(
        lambda x, w: ce.einsum_all_reduce("ij,jk->ik", x, w, axis_name="x"),
        mesh=mesh, in_specs=(P(None, "x"), P("x")), out_specs=P(),
    )  # fmt: skip
    with pytest.warns(
        UserWarning, match=r"ce.einsum_all_reduce: .* is replaced while this is called"
    ):
        local(X, W)
