"""Layers where a mesh's axes have other names, where there are others beside them, and where types say
how arrays are sharded; each against one device."""

from __future__ import annotations

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import layouts
from layouts import MeshAxes, reference
from layouts.models.config import ModelConfig
from layouts.models.named_models import TINY_GROUPED
from layouts.models.norms import normalize
from layouts.models.params import init
from layouts.partitionings.param_specs import WEIGHT_SPECS

from .models import prompts
from .test_layers import LENGTHS, PLANS, B, T, attended, draw, one_layer, past_of

pytestmark = pytest.mark.slow

WS, WS_ROWS, WHOLE, WS_1D, WG_XY = (PLANS[i] for i in (0, 2, 3, 4, 5))
WS_MOVED = PLANS[1]
WG = (layouts.WeightGathered(), layouts.BatchSharded())
# Names and sizes of a mesh, what they stand for, and layouts.
ROOMS: dict[str, tuple[dict[str, int], MeshAxes, tuple[Any, ...]]] = {
    "fsdp x tp": ({"fsdp": 4, "tp": 2}, MeshAxes(x="fsdp", y="tp"), (WS, WS_ROWS)),
    "tp alone": ({"model": 8}, MeshAxes(z="model"), (WS_1D, WG_XY)),
    "data and model": ({"data": 2, "model": 4}, MeshAxes(y="model", batch="data"), (WS_1D, WHOLE)),
    "in another order": (
        {"y": 2, "z": 2, "x": 2},
        MeshAxes(x="y", y="z", z="x"),
        (WS_MOVED, WS_ROWS),
    ),
    "x of two axes": ({"a": 2, "t": 2, "b": 2}, MeshAxes(x=("a", "b"), y="t"), (WS_MOVED, WG)),
    "two data axes": (
        {"pod": 2, "data": 2, "x": 2},
        MeshAxes(x="x", batch=("pod", "data")),
        (WG_XY, WHOLE),
    ),
    "nothing but data": ({"data": 8}, MeshAxes(batch="data"), (WS, WS_1D)),
    "data, x, y": (
        {"data": 2, "x": 2, "y": 2},
        MeshAxes(x="x", y="y", batch="data"),
        (WS_ROWS, WG),
    ),
}


def mesh_with(axes: dict[str, int], kind: AxisType | dict[str, AxisType] = AxisType.Auto) -> Any:
    kinds = kind if isinstance(kind, dict) else dict.fromkeys(axes, kind)
    types = tuple(kinds.get(name, AxisType.Auto) for name in axes)
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=types)


def layer_specs(config: ModelConfig, mesh: Any, axes: Any, names: Any = None) -> Any:
    """Of one layer's weights, as a user has them: from `param_specs`."""
    stored = layouts.param_specs(config, mesh, axes=axes)["blocks"]
    own = jax.tree.map(lambda spec: P(*spec[1:]), stored, is_leaf=lambda x: isinstance(x, P))
    return own if names is None else {name: own[name] for name in names if name in own}


@functools.cache
def case(config: ModelConfig) -> tuple[Any, jax.Array, jax.Array, jax.Array]:
    """One layer's weights, activations, and what the feedforward and the block make of them on one
    device."""
    p, x = one_layer(config), draw(0, B, T, config.d_model)
    zeros = jnp.zeros((B,), jnp.int32)
    y = normalize(x, p["norm"], config)
    z = x + attended(y, p, config, past_of(config), zeros)
    if config.block == "serial":
        y = normalize(z, p["norm_ffn"], config)
    return p, x, reference.feedforward(x, p, config), z + reference.feedforward(y, p, config)


@pytest.mark.parametrize("room", ROOMS)
def test_layers_inside_a_shard_map_under_other_names(room: str) -> None:
    sizes, axes, plans = ROOMS[room]
    mesh, config = mesh_with(sizes), TINY_GROUPED
    p, x, ffn, block = case(config)
    for layout, attention in plans:
        spec = layouts.activation_spec(layout, axes)

        def both(x: Any, p: Any, layout: Any = layout, attention: Any = attention) -> Any:
            ffn = {name: p[name] for name in WEIGHT_SPECS if name in p}
            return (
                layouts.feedforward(x, ffn, config, layout, axes=axes),
                layouts.serial_block(x, p, config, layout, attention, axes=axes)[0],
            )

        run = jax.shard_map(
            both,
            mesh=mesh,
            in_specs=(spec, layer_specs(config, mesh, axes)),
            out_specs=(spec, spec),
            check_vma=False,
        )
        found = jax.jit(run)(x, p)
        np.testing.assert_allclose(found[0], ffn, rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(found[1], block, rtol=1e-4, atol=1e-5)


def test_a_mesh_with_other_names_from_outside() -> None:
    """`mesh=` and `axes=`: lengths, a past and new keys are as global as x."""
    mesh, config = mesh_with({"data": 2, "x": 2, "y": 2}), TINY_GROUPED
    axes = {"x": "x", "y": "y", "batch": "data"}
    p, x, _, _ = case(config)
    past = past_of(config)
    run = jax.jit(
        lambda x, p, lengths, past: layouts.serial_block(
            x, p, config, *WS_ROWS, lengths=lengths, past=past, mesh=mesh, axes=axes
        )
    )
    y, (k, _) = run(x, p, LENGTHS, past)
    z = x + attended(normalize(x, p["norm"], config), p, config, past)
    expected = z + reference.feedforward(normalize(z, p["norm_ffn"], config), p, config)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "y"), None, "x")), 3)
    assert k.values.sharding.is_equivalent_to(NamedSharding(mesh, P(("data", "x", "y"))), 4)


@pytest.mark.parametrize("where", ["outside", "inside", "nested"])
def test_a_data_axis_left_to_the_compiler(where: str) -> None:
    mesh, config = mesh_with({"data": 2, "x": 2, "y": 2, "z": 1}), TINY_GROUPED
    p, x, _, expected = case(config)
    if where == "outside":
        # All of x, y and z are there, and need no other names.
        found, _ = layouts.serial_block(x, p, config, *WS_ROWS, mesh=mesh)
    elif where == "inside":
        spec = layouts.activation_spec(WS_ROWS[0])
        found = jax.jit(
            jax.shard_map(
                lambda x, p: layouts.serial_block(x, p, config, *WS_ROWS)[0],
                mesh=mesh,
                in_specs=(spec, layer_specs(config, mesh, None)),
                out_specs=spec,
                axis_names={"x", "y", "z"},
                check_vma=False,
            )
        )(jax.device_put(x, NamedSharding(mesh, P("data"))), p)
    else:
        found = jax.jit(
            jax.shard_map(
                lambda x, p: layouts.serial_block(x, p, config, *WS_ROWS, mesh=mesh)[0],
                mesh=mesh,
                in_specs=(P("data"), P()),
                out_specs=P("data"),
                axis_names={"data"},
                check_vma=False,
            )
        )(x, p)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("data", [1, 2])
@pytest.mark.parametrize("layer", ["feedforward", "attention", "block"])
def test_what_has_the_type_of_activations_is_not_resharded(layer: str, data: int) -> None:
    """On a mesh with Explicit axes types come out as they went in, gradients too."""
    config, axes = TINY_GROUPED, MeshAxes(x="x", y="tp")
    mesh = mesh_with({"data": data, "x": 2, "tp": 4 // data}, AxisType.Explicit)
    p, x, ffn, block = case(config)
    layout, attention = WS_ROWS
    # With one device of data its name may be in the type, or not.
    spec = P(("data", "tp") if data > 1 else "tp", None, "x")
    with jax.set_mesh(mesh):
        x = jax.device_put(x, NamedSharding(mesh, spec))
        specs = layer_specs(config, mesh, axes)
        p = jax.device_put(p, layouts.shardings(mesh, specs))

        def run(x: jax.Array, p: Any) -> jax.Array:
            how: dict[str, Any] = {"mesh": mesh, "axes": axes}
            if layer == "feedforward":
                own = {name: p[name] for name in WEIGHT_SPECS if name in p}
                return x + layouts.feedforward(x, own, config, layout, **how)
            if layer == "attention":
                return x + layouts.attention(x, p, config, layout, attention, **how)[0]
            return layouts.serial_block(x, p, config, layout, attention, **how)[0]

        y = jax.jit(run)(x, p)
        assert jax.typeof(y).sharding.spec == spec
        assert "reshard" not in str(jax.make_jaxpr(run)(x, p))
        back = jax.make_jaxpr(lambda x, p, dy: jax.vjp(run, x, p)[1](dy))
        assert "reshard" not in str(back(x, p, y))
        dx, dp = jax.jit(lambda x, p, dy: jax.vjp(run, x, p)[1](dy))(x, p, y)
        assert jax.typeof(dx).sharding.spec == spec
        assert jax.typeof(dp["w_q"]).sharding.spec == specs["w_q"]
    want = {"feedforward": x + ffn, "block": block}.get(layer)
    if want is not None:
        np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)
    if layer == "feedforward":
        own = {name: case(config)[0][name] for name in WEIGHT_SPECS if name in p}
        _, pull = jax.vjp(lambda x: x + reference.feedforward(x, own, config), np.asarray(x))
        np.testing.assert_allclose(dx, pull(np.asarray(y))[0], rtol=1e-3, atol=1e-4)


def test_an_explicit_data_axis_beside_manual_ones() -> None:
    mesh = mesh_with({"data": 2, "x": 2, "y": 2}, {"data": AxisType.Explicit})
    config, axes = TINY_GROUPED, MeshAxes(x="x", y="y")
    p, x, ffn, block = case(config)
    spec = layouts.activation_spec(WS_ROWS[0], axes)

    def both(x: jax.Array, p: Any) -> Any:
        own = {name: p[name] for name in WEIGHT_SPECS if name in p}
        ffn = layouts.feedforward(x, own, config, WS_ROWS[0], axes=axes)
        block = layouts.serial_block(x, p, config, *WS_ROWS, axes=axes)[0]
        for y in (ffn, block):
            assert jax.typeof(y).sharding.spec == jax.typeof(x).sharding.spec
        assert jax.typeof(x).sharding.spec[0] == "data"
        return ffn, block

    with jax.set_mesh(mesh):
        run = jax.shard_map(
            both,
            mesh=mesh,
            in_specs=(spec, layer_specs(config, mesh, axes)),
            out_specs=(spec, spec),
            axis_names={"x", "y"},
            check_vma=False,
        )
        found = jax.jit(run)(jax.device_put(x, NamedSharding(mesh, P("data"))), p)
    np.testing.assert_allclose(found[0], ffn, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], block, rtol=1e-4, atol=1e-5)


def test_specs_come_out_in_the_names_of_the_mesh() -> None:
    mesh, axes = mesh_with({"data": 2, "fsdp": 2, "tp": 2}), MeshAxes("fsdp", "tp", batch="data")
    specs = layouts.param_specs(TINY_GROUPED, mesh, axes=axes)
    assert specs["blocks"]["w_in"] == P(None, "fsdp", ("tp",))
    assert specs["blocks"]["w_out"] == P(None, ("tp",), "fsdp")
    assert specs["embedding"] == P(("fsdp", "tp"), None)
    assert layouts.activation_spec(layouts.WeightStationary2D(by_batch=True), axes) == P(
        ("data", "tp"), None, ("fsdp",)
    )
    plain = layouts.activation_spec(layouts.WeightStationary2D(by_batch=True))
    assert plain == P(("y", "z"), None, ("x",))
    inside = layouts.init_cache(
        TINY_GROUPED, layouts.renamed(mesh, axes), 8, 4, plan=layouts.Partitioning(*WS_ROWS)
    )
    kept = layouts.cache_specs(
        TINY_GROUPED, mesh, layouts.Partitioning(*WS_ROWS), inside, axes=axes
    )
    assert kept.k.values == P(None, ("fsdp", "tp"), None, None, None)


def test_renamed_keeps_devices_and_types() -> None:
    mesh = mesh_with({"data": 2, "model": 4}, AxisType.Explicit)
    found = layouts.renamed(mesh, MeshAxes(y="model"))
    assert dict(found.shape) == {"data": 2, "y": 4, "x": 1, "z": 1}
    assert set(found.axis_types) == {AxisType.Explicit}
    assert (found.devices.ravel() == mesh.devices.ravel()).all()
    both = layouts.renamed(mesh, {"x": ("data", "model")})
    assert dict(both.shape) == {"x": 8, "y": 1, "z": 1}
    apart = layouts.renamed(mesh_with({"a": 2, "t": 2, "b": 2}), MeshAxes(x=("a", "b"), y="t"))
    assert dict(apart.shape) == {"x": 4, "y": 2, "z": 1}
    shape = layouts.renamed(mesh.abstract_mesh, MeshAxes(y="model"))
    assert dict(shape.shape) == {"data": 2, "y": 4, "x": 1, "z": 1}


def test_a_decoder_on_a_renamed_mesh_beside_a_data_axis() -> None:
    mesh, config = mesh_with({"data": 2, "model": 4}), TINY_GROUPED
    axes = MeshAxes(y="model")
    tokens = prompts(config, 8, 6)
    # Parameters that lie on the mesh of the user.
    params = jax.device_put(
        init(jax.random.key(0), config, jnp.float32),
        layouts.shardings(mesh, layouts.param_specs(config, mesh, axes=axes)),
    )
    found = layouts.generate(config, layouts.renamed(mesh, axes), params, tokens, max_new_tokens=3)
    alone = mesh_with({"x": 1, "y": 1, "z": 1})
    want = layouts.generate(config, alone, jax.device_get(params), tokens, max_new_tokens=3)
    np.testing.assert_array_equal(found[0], want[0])


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (MeshAxes(x="tp"), r"with the axes \('tp',\), got \('data', 'model'\)"),
        (None, r"axes=layouts.MeshAxes\(x='data', y='model'\)"),
        ({"tp": "model"}, r"must say what the mesh calls x, y and z"),
        ("model", r"must be a layouts.MeshAxes"),
    ],
)
def test_wrong_names_are_answered_in_words(axes: Any, message: str) -> None:
    mesh, config = mesh_with({"data": 2, "model": 4}), TINY_GROUPED
    p, x, _, _ = case(config)
    own = {name: p[name] for name in WEIGHT_SPECS if name in p}
    with pytest.raises(ValueError, match=message):
        layouts.feedforward(x, own, config, WS[0], mesh=mesh, axes=axes)
    with pytest.raises(ValueError, match=message):
        layouts.attention(x, p, config, *WS, mesh=mesh, axes=axes)


def test_the_advice_about_names_is_accepted() -> None:
    mesh, config = mesh_with({"data": 2, "model": 4}), TINY_GROUPED
    p, x, ffn, _ = case(config)
    own = {name: p[name] for name in WEIGHT_SPECS if name in p}

    def inside(axes: Any) -> jax.Array:
        spec = P() if axes is None else layouts.activation_spec(WS[0], axes)
        stored = P() if axes is None else layer_specs(config, mesh, axes)
        specs = stored if axes is None else {name: stored[name] for name in own}
        run = jax.shard_map(
            lambda x, w: layouts.feedforward(x, w, config, WS[0], axes=axes),
            mesh=mesh,
            in_specs=(spec, specs),
            out_specs=spec,
            check_vma=False,
        )
        return jax.jit(run)(x, own)

    for call in (
        inside,
        lambda axes: layouts.feedforward(x, own, config, WS[0], mesh=mesh, axes=axes),
    ):
        with pytest.raises(ValueError, match="axes=") as found:
            call(None)
        said = re.search(r"axes=layouts\.(MeshAxes\([^)]*\))", str(found.value))
        assert said is not None
        axes = eval(said[1], {"MeshAxes": MeshAxes})
        np.testing.assert_allclose(call(axes), ffn, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("wrong", [{"x": "a", "y": "a"}, {"x": 3}, {"z": ("a", 1)}], ids=str)
def test_names_are_names_and_differ(wrong: Any) -> None:
    with pytest.raises(
        ValueError, match="give names of mesh axes, or tuples of names, no name twice"
    ):
        MeshAxes(**wrong)


def test_sizes_that_do_not_divide_are_said() -> None:
    mesh, config = mesh_with({"data": 8}), TINY_GROUPED
    p, x, _, _ = case(config)
    own = {name: p[name] for name in WEIGHT_SPECS if name in p}
    with pytest.raises(
        ValueError, match=r"\('data',\), 8 devices, which do not divide 7; pad it to 8"
    ):
        layouts.feedforward(x[:7], own, config, WS[0], mesh=mesh, axes=MeshAxes(batch="data"))
