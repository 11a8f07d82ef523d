"""What newcomers write: refused in words that say what to write, which is taken when written."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
from collective_einsum import Schedule
from collective_einsum.ops.schedule import NAMED
from collective_einsum.text.messages import nearest

from .oracle import MeshOf

X = jnp.ones((8, 4))


def refuses(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


def local(mesh_of: MeshOf, function: Callable[[], Any]) -> None:
    """Traces a function inside a shard_map."""

    def run(x: Any) -> Any:
        function()
        return x

    mesh = mesh_of((4,), "t")
    jax.jit(jax.shard_map(run, mesh=mesh, in_specs=P(), out_specs=P())).trace(0.0)


def gathers(**how: Any) -> Callable[[], Any]:
    how = {"axis_name": "t", "gather": "m"} | how
    return lambda: ce.all_gather_einsum("mk,kn->mn", X, X[:4], **how)


@pytest.mark.parametrize(
    ("how", "words", "instead"),
    [
        ({"schedule": "latncy"}, "; did you mean 'latency'?", {"schedule": "latency"}),
        ({"schedule": "Blocking"}, "; did you mean 'blocking'?", {"schedule": "blocking"}),
        ({"schedule": "AUTO"}, "; did you mean 'auto'?", {"schedule": "auto"}),
        ({"schedule": "ring"}, "or pass a Schedule('ring')", {"schedule": Schedule("ring")}),
        ({"wire_dtype": "bf16"}, "write 'bfloat16' or jnp.bf", {"wire_dtype": "bfloat16"}),
        (
            {"preferred_element_type": "f32"},
            "preferred_element_type='f32' is no dtype; write 'float32'",
            {"preferred_element_type": "float32"},
        ),
        (
            {"accumulator_dtype": 32},
            "accumulator_dtype=32 is no dtype; write 'bfloat16'",
            {"accumulator_dtype": "bfloat16"},
        ),
        (
            {"overlap_seconds": "1"},
            "overlap_seconds='1' must be a number of seconds",
            {"overlap_seconds": 1},
        ),
        (
            {"overlap_seconds": -1.0},
            "overlap_seconds=-1.0 must be a number of seconds",
            {"overlap_seconds": np.float32(1)},
        ),
        (
            {"overlap_seconds": float("nan")},
            "overlap_seconds=nan must be a number of seconds",
            {"overlap_seconds": 0},
        ),
        ({"axis_name": 0}, "must be a mesh axis name or a tuple of names, got 0", {}),
        ({"axis_name": P("t")}, "must be a mesh axis name or a tuple of names", {}),
        ({"gather": 0}, "gather=0 is not a label of einsum", {}),
        ({"gather": ["m"]}, "gather=['m'] is not a label of einsum", {}),
        ({"chip": "v44"}, "no chip is known by that name; give one of 'v4'", {"chip": "v4"}),
    ],
)
def test_arguments_of_einsums(mesh_of: MeshOf, how: Any, words: str, instead: Any) -> None:
    refuses(lambda: local(mesh_of, gathers(**how)), words)
    local(mesh_of, gathers(**instead))


@pytest.mark.parametrize("dimension", ["t", None, 0.0, True])
def test_dimensions_are_integers(mesh_of: MeshOf, dimension: Any) -> None:
    words = f"dimension {dimension!r} must be an integer"
    for call in (
        lambda d: ce.all_gather(X, "t", axis=d),
        lambda d: ce.reduce_scatter(X, "t", scatter_dimension=d),
        lambda d: ce.all_to_all(X, "t", d, 1),
        lambda d: ce.all_to_all(X, "t", 1, d),
    ):
        refuses(lambda call=call: local(mesh_of, lambda: call(dimension)), words)
        local(mesh_of, lambda call=call: call(np.int64(0)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kind": "rign"}, "; did you mean 'ring'?"),
        ({"kind": "Ring"}, "; did you mean 'ring'?"),
        ({"kind": "latency"}, "but a direction; write Schedule('ring', 'latency')"),
        ({"kind": "async"}, "but a direction; write Schedule('chunked', 'async')"),
        ({"kind": ["ring"]}, "Schedule kind ['ring'] is not 'blocking'"),
        ({"direction": "bidirection"}, "; did you mean 'bidirectional'?"),
        ({"direction": ["latency"]}, "Schedule direction ['latency'] is none of"),
        ({"ring_of": "gater"}, "; did you mean 'gather'?"),
        ({"kind": "chunked", "label": 3}, "Schedule label 3 is no label of an einsum"),
        ({"kind": "chunked", "label": "mk"}, "Schedule label 'mk' is no label of an einsum"),
        ({"kind": "chunked", "label": ["m"]}, "give one letter, or None"),
        ({"rolled": "yes"}, "Schedule rolled='yes' must be True, False or None"),
        ({"rolled": 1}, "Schedule rolled=1 must be True, False or None"),
        ({"wire_dtype": "bf16"}, "wire_dtype='bf16' is no dtype; write 'bfloat16'"),
        ({"wire_dtype": 3}, "wire_dtype=3 is no dtype"),
    ],
)
def test_fields_of_a_schedule(options: Any, words: str) -> None:
    refuses(lambda: Schedule(**options), words)


def test_numpys_numbers_make_the_same_schedule() -> None:
    made: Any = Schedule("chunked", chunks=np.int64(4), rolled=np.bool_(True))
    assert made == Schedule("chunked", chunks=4, rolled=True)
    assert (type(made.chunks), type(made.rolled)) == (int, bool)
    assert hash(made) == hash(Schedule("chunked", chunks=4, rolled=True))
    made = Schedule("chunked", chunks=(np.int32(1), 3))
    assert str(made) == str(Schedule("chunked", chunks=(1, 3)))


@pytest.mark.parametrize("axis", ["0", None, 0.0, True, [0, "1"]])
def test_axes_of_a_scale_are_integers(axis: Any) -> None:
    refuses(lambda: ce.quantize(X, axis), f"axis={axis!r} must be a dimension of an array")
    assert ce.quantize(X, np.int64(0)).scale.shape == (1, 4)


def test_the_nearest_word() -> None:
    for word in NAMED:
        assert nearest(word.upper(), NAMED) == word
        assert nearest(word[:-1], NAMED) == word
    assert nearest("something else", NAMED) is None
    assert nearest(3, NAMED) is None
