"""Parameters: their shapes, their numbers under any sharding, int8, padding, and what is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from collective_einsum import Quantized
from collective_einsum import quantize as quantize_array
from layouts.models.config import ModelConfig
from layouts.models.named_models import (
    MT_NLG_530B,
    PALM_540B,
    TINY_GROUPED,
    TINY_PADDED,
    TINY_RELU,
)
from layouts.models.param_checks import check_params
from layouts.models.params import Params, activation_dtype, init, params_shapes, quantize

from .models import TINY, name

pytestmark = pytest.mark.slow

AXES = ("x", "y", "z")
STORED = {
    "w_in": P(None, "x", ("y", "z")),
    "w_gate": P(None, "x", ("y", "z")),
    "w_out": P(None, ("y", "z"), "x"),
    "w_q": P(None, "x", ("y", "z")),
    "w_o": P(None, ("y", "z"), "x"),
}


def leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def sharded(tree: Params, mesh: Mesh) -> Params:
    """A NamedSharding for each array: the large ones in parts, the rest whole."""
    specs = {key: STORED.get(key, P()) for key in tree["blocks"]}
    blocks = {
        key: jax.tree.map(lambda _, spec=specs[key]: NamedSharding(mesh, spec), x)
        for key, x in tree["blocks"].items()
    }
    rest = {
        key: jax.tree.map(
            lambda _, key=key: NamedSharding(mesh, P(AXES) if "embedding" in key else P()), x
        )
        for key, x in tree.items()
        if key != "blocks"
    }
    return rest | {"blocks": blocks}


@pytest.mark.parametrize("config", [*TINY, PALM_540B, MT_NLG_530B], ids=name)
def test_as_many_as_the_config_counts(config: ModelConfig) -> None:
    shapes = params_shapes(config)
    assert sum(x.size for x in jax.tree.leaves(shapes)) == config.stored_parameters
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
    check_params(shapes, config)


def test_shapes_of_palm_540b() -> None:
    shapes = jax.tree.map(lambda x: x.shape, params_shapes(PALM_540B))
    assert shapes == {
        "embedding": (256128, 18432),
        "final_norm": {"scale": (18432,)},
        "blocks": {
            "norm": {"scale": (118, 18432)},
            "w_q": (118, 18432, 48 * 256),
            "w_kv": (118, 18432, 2 * 256),
            "w_o": (118, 48 * 256, 18432),
            "w_in": (118, 18432, 73728),
            "w_gate": (118, 18432, 73728),
            "w_out": (118, 73728, 18432),
        },
    }


def test_shapes_of_biases_are_those_of_the_outputs() -> None:
    shapes = jax.tree.map(lambda x: x.shape, params_shapes(MT_NLG_530B))["blocks"]
    assert shapes["norm_ffn"] == {"scale": (105, 20480), "bias": (105, 20480)}
    assert shapes["b_q"] == (105, 128 * 160)
    assert shapes["b_kv"] == (105, 128 * 2 * 160)
    assert shapes["b_o"] == shapes["b_out"] == (105, 20480)
    assert shapes["b_in"] == (105, 81920)
    assert "b_gate" not in shapes


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 2, 1), (1, 1, 8)])
def test_numbers_do_not_depend_on_the_sharding(
    mesh_of: Callable[..., Mesh], shape: tuple[int, int, int], explicit: bool
) -> None:
    config, key = TINY_PADDED, jax.random.key(3)
    mesh = mesh_of(shape, AXES, explicit=explicit)
    shardings = sharded(params_shapes(config), mesh)
    make = jax.jit(init, static_argnums=(1, 2), out_shardings=shardings)
    with jax.set_mesh(mesh):
        parts = make(key, config, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, parts, init(key, config, jnp.float32))
    assert parts["blocks"]["w_in"].sharding == shardings["blocks"]["w_in"]


def test_a_device_makes_its_shards_and_no_more(mesh_of: Callable[..., Mesh]) -> None:
    config = dataclasses.replace(TINY_PADDED, d_model=256, d_ff=1024, heads=48, padded_heads=64)
    temporary = {}
    for shape in ((2, 2, 2), (1, 1, 1)):
        shardings = sharded(params_shapes(config), mesh_of(shape, AXES))
        make = jax.jit(init, static_argnums=(1, 2), out_shardings=shardings)
        compiled = make.lower(jax.random.key(0), config, jnp.float32).compile()
        assert not re.search(r"all-|collective-|reduce-scatter", compiled.as_text() or "")
        memory = compiled.memory_analysis()
        assert memory is not None
        temporary[shape] = memory.temp_size_in_bytes
    # An eighth, and the few arrays that are not sharded.
    assert temporary[2, 2, 2] < temporary[1, 1, 1] / 6


@pytest.mark.parametrize("config", TINY, ids=name)
def test_every_number_is_random_but_padding(config: ModelConfig) -> None:
    params = init(jax.random.key(0), config, jnp.float32)
    blocks = params["blocks"]
    real = np.repeat(config.real_heads, config.d_head)
    for path, x in leaves(params).items():
        assert np.unique(np.asarray(x)).size > 0.5 * (x.size - 1), path
        assert np.isfinite(x).all(), path
    assert np.all(np.asarray(blocks["w_q"])[:, :, ~real] == 0)
    assert np.all(np.asarray(blocks["w_o"])[:, ~real] == 0)
    assert np.all(np.asarray(blocks["w_q"])[:, :, real] != 0)
    assert np.all(np.asarray(blocks["w_o"])[:, real] != 0)


def test_arrays_differ_and_follow_the_key() -> None:
    config = TINY_GROUPED
    one, two = (init(jax.random.key(k), config, jnp.float32) for k in (0, 1))
    w = one["blocks"]
    assert not np.array_equal(w["w_in"], w["w_gate"])
    assert not np.array_equal(w["w_kv"][:, :, 0:8], w["w_kv"][:, :, 8:16])
    assert not np.array_equal(w["w_in"][0], w["w_in"][1])
    assert not np.array_equal(one["embedding"], one["unembedding"])
    assert not np.array_equal(w["w_in"], two["blocks"]["w_in"])
    # Another array in the tree changes no other.
    tied = init(jax.random.key(0), dataclasses.replace(config, tied_embedding=True), jnp.float32)
    np.testing.assert_array_equal(tied["embedding"], one["embedding"])


def test_a_matrix_keeps_the_variance() -> None:
    config = dataclasses.replace(TINY_PADDED, d_model=512, d_ff=256)
    w = init(jax.random.key(0), config, jnp.float32)["blocks"]["w_in"]
    assert np.std(w) == pytest.approx(512**-0.5, rel=0.01)
    assert np.mean(w) == pytest.approx(0, abs=512**-0.5 * 0.01)


def test_bfloat16_is_float32_rounded() -> None:
    key = jax.random.key(0)
    narrow = init(key, TINY_RELU, jnp.bfloat16)
    full = init(key, TINY_RELU, jnp.float32)
    assert activation_dtype(narrow) == jnp.bfloat16
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), narrow, full
    )


@pytest.mark.parametrize("config", TINY, ids=name)
def test_quantize_rounds_each_output_channel(config: ModelConfig) -> None:
    params = init(jax.random.key(0), config, jnp.float32)
    small = quantize(params)
    check_params(small, config)
    shapes = params_shapes(config, jnp.float32, int8=True)
    assert leaves(shapes).keys() == leaves(small).keys()
    for path, x in leaves(shapes).items():
        assert (x.shape, x.dtype) == (leaves(small)[path].shape, leaves(small)[path].dtype), path
    block = small["blocks"]
    assert block["w_q"].scale.shape == (2, 1, config.stored_heads * 8)
    assert block["w_o"].scale.shape == (2, 1, 32)
    assert block["w_out"].scale.shape == (2, 1, 32)
    assert small["embedding"].scale.shape == (64, 1)
    assert not isinstance(block["norm"]["scale"], Quantized)
    for key in ("w_q", "w_kv", "w_o", "w_in", "w_out"):
        assert block[key].values.dtype == jnp.int8
        error = np.abs(np.asarray(block[key].dequantize()) - np.asarray(params["blocks"][key]))
        assert np.all(error <= 0.501 * np.asarray(block[key].scale)), key
        # Each channel uses its whole range, so the scale is its own. A channel of padding has none.
        peak = np.abs(np.asarray(block[key].values)).max(
            axis=tuple(i for i, s in enumerate(block[key].scale.shape) if s == 1), keepdims=True
        )
        empty = np.all(peak == 0, axis=(0, 1)) if key == "w_q" else np.zeros(1, bool)
        assert empty.sum() == (8 * config.real_heads.count(False) if key == "w_q" else 0), key
        assert np.all((peak == 127) | (peak == 0)), key


def test_quantize_keeps_the_sharding(mesh_of: Callable[..., Mesh]) -> None:
    mesh = mesh_of((2, 2, 2), AXES)
    params = init(jax.random.key(0), TINY_PADDED, jnp.float32)
    placed = jax.device_put(params, sharded(params, mesh))
    small = jax.jit(quantize)(placed)
    assert small["blocks"]["w_in"].values.sharding.spec == STORED["w_in"]
    jax.tree.map(np.testing.assert_array_equal, small, quantize(params))


def without(tree: Params, key: str) -> Params:
    return tree | {"blocks": {k: v for k, v in tree["blocks"].items() if k != key}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: without(p, "w_gate"),
            r"lack 'blocks/w_gate' of shape \(2, 32, 64\) .gated=True",
        ),
        (lambda p: p | {"unembedding": p["embedding"]}, r"'unembedding'.*tied_embedding=True"),
        (
            lambda p: p | {"blocks": p["blocks"] | {"w_q": p["blocks"]["w_q"][:, :, :48]}},
            r"'blocks/w_q'\] has shape \(2, 32, 48\).*\(2, 32, 64\) .heads=6.*pad_heads",
        ),
        (
            lambda p: p | {"embedding": p["embedding"].astype(jnp.bfloat16)},
            r"'embedding'\] is bfloat16.*one dtype.*float32",
        ),
        (
            lambda p: p | {"final_norm": {"scale": p["final_norm"]["scale"].astype(jnp.bfloat16)}},
            r"'final_norm/scale'\] is bfloat16.*one dtype, here float32",
        ),
        (
            lambda p: jax.tree.map(lambda x: x.astype(jnp.int32), p),
            r"is int32 of shape .* must be floating",
        ),
        (
            lambda p: p | {"final_norm": {"scale": quantize_array(p["final_norm"]["scale"], 0)}},
            r"'final_norm/scale'\] is Quantized; only matrices and tables may be",
        ),
        (
            lambda p: p | {"embedding": Quantized(p["embedding"], jnp.ones((1, 32)), jnp.float32)},
            r"'embedding'\] has scales of shape \(1, 32\).*one per output channel has \(64, 1\)",
        ),
    ],
)
def test_refuses_params_of_another_model(change: Callable[[Params], Params], message: str) -> None:
    params = init(jax.random.key(0), TINY_PADDED, jnp.float32)
    check_params(params, TINY_PADDED)
    with pytest.raises(ValueError, match="tiny-padded: .*" + message):
        check_params(change(params), TINY_PADDED)
