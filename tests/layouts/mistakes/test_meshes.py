"""Meshes, keys, dtypes, sampling: as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import layouts
from layouts.models.named_models import TINY_GROUPED

from .room import BATCH, PLAN, SIZES, TOKENS, VOCAB, Room, refuses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        (
            (2, 2, 2),
            'is no jax.sharding.Mesh; make one with jax.make_mesh((2, 2, 2), ("x", "y", "z"))',
        ),
        ((8,), 'make one with jax.make_mesh((8, 1, 1), ("x", "y", "z"))'),
        (None, "mesh=None is no jax.sharding.Mesh; make one with jax.make_mesh((X, Y, Z),"),
        ("v4:2x2x2", "is no jax.sharding.Mesh"),
        (SIZES, "is no jax.sharding.Mesh"),
    ],
)
def test_what_is_no_mesh(room: Room, mesh: Any, words: str) -> None:
    config, key = TINY_GROUPED, jax.random.key(0)
    for call in (
        lambda: layouts.init(config, mesh, key),
        lambda: layouts.init_cache(config, mesh, 8, 8),
        lambda: layouts.move_cache(config, mesh, room.cache(), PLAN),
        lambda: layouts.param_specs(config, mesh),
        lambda: layouts.shardings(mesh, P()),
        lambda: layouts.lower_prefill(config, mesh, batch=8, length=8),
        lambda: layouts.default_decode(config, mesh, 8, 8),
        lambda: layouts.generate(config, mesh, room.params, TOKENS, max_new_tokens=2),
        lambda: layouts.prefill(config, mesh, room.params, room.cache(), TOKENS),
        lambda: layouts.decode_step(config, mesh, room.params, room.cache(), TOKENS),
    ):
        refuses(call, words)
    advice = re.search(r"jax\.make_mesh\(\(\d.*\)", words)
    if advice:
        made = eval(advice[0], {"jax": jax})
        assert layouts.init_cache(config, made, 8, 8).batch == 8


def test_meshes_without_axes_or_devices(room: Room) -> None:
    none = Mesh(np.array(jax.devices()[0]), ())
    refuses(lambda: layouts.param_specs(TINY_GROUPED, none), "got ()")
    config, mesh, key = TINY_GROUPED, room.mesh.abstract_mesh, jax.random.key(0)
    for call in (
        lambda: layouts.init(config, mesh, key),
        lambda: layouts.init(config, mesh, key, unrolled=True),
        lambda: layouts.init_cache(config, mesh, 8, 8),
        lambda: layouts.move_cache(config, mesh, room.cache(), PLAN),
        lambda: layouts.lower_decode_step(config, mesh, batch=8, context=8),
        lambda: layouts.lower_prefill(config, mesh, batch=8, length=8),
        lambda: layouts.generate(config, mesh, room.params, TOKENS, max_new_tokens=2),
        lambda: layouts.prefill(config, mesh, room.params, room.cache(), TOKENS),
        lambda: layouts.decode_step(config, mesh, room.params, room.cache(), TOKENS[:, 0]),
    ):
        refuses(call, "has no devices to ")


def test_keys(room: Room) -> None:
    def made(key: Any, **how: Any) -> Any:
        return layouts.init(TINY_GROUPED, room.mesh, key, jnp.float32, **how)

    for unrolled in (False, True):
        for key in (3, np.int64(3)):
            refuses(
                lambda key=key, unrolled=unrolled: made(key, unrolled=unrolled),
                "write jax.random.key(3)",
            )
    refuses(lambda: made(None), "key must be one jax.random.key, got None")
    refuses(lambda: made(jnp.arange(3)), "key must be one jax.random.key, got int32 of shape (3,)")
    refuses(lambda: made(jax.random.split(jax.random.key(0), 3)), "of shape (3,)")
    on_one = jax.device_put(jax.random.key(0), jax.devices()[1])
    for key in (jax.random.key(0), jax.random.PRNGKey(0), on_one):
        np.testing.assert_array_equal(made(key)["embedding"], room.params["embedding"])


def test_dtypes(room: Room) -> None:
    def made(dtype: Any) -> Any:
        return layouts.init(TINY_GROUPED, room.mesh, jax.random.key(0), dtype)

    for call in (made, lambda dtype: room.cache(dtype=dtype)):
        refuses(
            lambda call=call: call("bf16"), "dtype='bf16' is no dtype; write 'bfloat16' or jnp.bf"
        )
        refuses(lambda call=call: call("fp32"), "write 'float32' or jnp.float32")
        refuses(lambda call=call: call(None), "dtype=None is no dtype; write 'bfloat16'")
        refuses(lambda call=call: call(jnp.int32), "dtype=int32 must be a floating dtype")
        call("bfloat16")
    refuses(lambda: made(jnp.int8), 'for int8 write weights="int8"')
    refuses(lambda: room.cache(dtype="int8"), "for int8 write int8=True")


def test_sampling(room: Room) -> None:
    given: Any
    for given in (0.7, {"temperature": 0.7}, "greedy"):
        refuses(
            lambda given=given: room.generate(sampling=given),
            "must be a layouts.Sampling, such as layouts.Sampling(temperature=0.7, top_p=0.9)",
        )
    greedy, _ = room.generate()
    np.testing.assert_array_equal(room.generate(sampling=layouts.Sampling)[0], greedy)
    on_one = jax.device_put(jnp.float32(0), jax.devices()[1])
    sampling = layouts.Sampling(temperature=on_one)
    np.testing.assert_array_equal(room.generate(sampling=sampling)[0], greedy)


def test_a_top_k_beyond_the_vocabulary_leaves_all_tokens(room: Room) -> None:
    seeds = np.arange(BATCH)

    def drawn(**how: Any) -> Any:
        sampling = layouts.Sampling(temperature=5.0, **how)
        return np.asarray(room.generate(sampling=sampling, seeds=seeds, max_new_tokens=4)[0])

    wanted = drawn(top_k=VOCAB)
    np.testing.assert_array_equal(wanted, drawn())
    np.testing.assert_array_equal(wanted, drawn(top_k=VOCAB + 1))
    np.testing.assert_array_equal(wanted, drawn(top_k=np.full(BATCH, 2**31 - 1, np.int32)))


def test_prefix_and_specs_are_placed(room: Room) -> None:
    one = room.cache(1, 2, plan="WS 2D, heads")
    _, one = room.prefill(TOKENS[:1], cache=one, plan="WS 2D, heads")
    prefix = layouts.shared_prefix(one)
    elsewhere = jax.device_put(prefix, NamedSharding(one.lengths.sharding.mesh, P()))
    assert room.generate(prefix=elsewhere)[0].shape == (BATCH, 2)
    on_one = jax.device_put(prefix, jax.devices()[1])
    refuses(lambda: room.generate(prefix=on_one), "the prefix has an array of shape")
