"""Parameters: taken as meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

import layouts
from layouts.models import params as params_module
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIQUERY

from .room import PLAN, Room, refuses

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda room: room.without("final_norm"), "params lack 'final_norm/scale' of shape (32,)"),
        (lambda room: room.without("blocks"), "params lack 'blocks/norm/scale'"),
        (lambda room: room.without("embedding"), "params lack 'embedding' of shape (64, 32)"),
        (
            lambda room: room.params | {"lm_head": 1},
            "params have 'lm_head', which this config does",
        ),
        (lambda room: room.params | {"final_norm": {"scale": 1.0}}, "scale']=1.0 must be an array"),
        (lambda room: room.params | {"blocks": None}, "params['blocks'] must be as layouts.init"),
        (lambda room: room.params | {"blocks": [{}]}, "blocks of 1 layers, but the config has 2"),
        (lambda room: room.params | {"blocks": [{}, {}]}, "params lack 'blocks/[0]/norm/scale'"),
        (lambda room: layouts.unroll(room.params)["blocks"], "must be as layouts.init makes them"),
        (lambda room: None, "params must be as layouts.init makes them, got NoneType"),
        (lambda room: layouts.param_specs(TINY_GROUPED, room.mesh), "must be an array"),
        (
            lambda room: params_module.params_shapes(TINY_GROUPED),
            "there are shapes alone among them",
        ),
    ],
)
def test_params_that_do_not_fit(room: Room, make: Any, words: str) -> None:
    for call in (room.prefill, room.decode, room.generate):
        refuses(lambda call=call: call(params=make(room)), words)
    unrolled = layouts.unroll(room.params) | {"unembedding": room.params["embedding"][:-1]}
    refuses(lambda: room.generate(params=unrolled), "params['unembedding'] has shape (63, 32)")


def test_params_of_another_model(room: Room) -> None:
    for call in (room.prefill, room.decode, room.generate):
        refuses(lambda call=call: call(config=TINY_MULTIQUERY), "tiny-multiquery: params have")
        refuses(lambda call=call: call(config="tiny-multiqery"), "did you mean 'tiny-multiquery'?")


def test_params_on_one_device(room: Room) -> None:
    params = jax.device_put(room.params, jax.devices()[0])
    advice = (
        "jax.device_put(params, layouts.shardings(mesh, layouts.param_specs(config, mesh, params)))"
    )
    for call in (room.prefill, room.decode, room.generate):
        refuses(lambda call=call: call(params=params), advice)
    scope = {"jax": jax, "layouts": layouts, "params": params}
    placed = eval(advice, scope | {"mesh": room.mesh, "config": "tiny-grouped"})
    wanted, _ = room.prefill()
    for each in (placed, jax.tree.map(np.asarray, params)):
        np.testing.assert_array_equal(room.prefill(params=each)[0], wanted)


def test_params_and_caches_of_other_meshes(room: Room) -> None:
    axes = {"axis_types": (AxisType.Auto,) * 3}
    few = jax.make_mesh((1, 2, 2), ("x", "y", "z"), devices=jax.devices()[:4], **axes)
    turned = Mesh(room.mesh.devices[::-1], room.mesh.axis_names, axis_types=axes["axis_types"])
    for mesh in (few, turned):
        params = layouts.init(TINY_GROUPED, mesh, jax.random.key(0), jnp.float32)
        refuses(lambda params=params: room.prefill(params=params), "params has an array of shape")
        cache = Room(mesh, params).cache()
        for call in (room.prefill, room.decode):
            refuses(lambda c=cache, call=call: call(cache=c), "or move it with layouts.move_cache")
        room.decode(cache=layouts.move_cache(TINY_GROUPED, room.mesh, cache, PLAN))


def test_what_is_no_params() -> None:
    refuses(lambda: layouts.quantize(TINY_GROUPED), "quantize takes the parameters of a model, got")
    refuses(lambda: layouts.unroll({"w_in": 1}), "unroll takes all parameters")
