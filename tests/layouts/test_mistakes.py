"""What newcomers write: taken as it is meant, or refused in words that say what to write instead."""

# What is refused here is refused by the types, too.
# pyright: reportArgumentType=false

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import collective_einsum as ce
import layouts
from layouts.cost.layer_work import layer_work
from layouts.cost.step_cost import cost, load
from layouts.models import params as params_module
from layouts.models.config import TINY_GROUPED, TINY_MULTIQUERY
from layouts.partitionings.named_layouts import ATTENTIONS, FEEDFORWARDS
from layouts.partitionings.partitioning import as_plan

pytestmark = pytest.mark.slow

BATCH, ROOM, VOCAB = 8, 8, TINY_GROUPED.vocab
PLAN = layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded())
WORDS = "WS 2D, batch xyz"
TOKENS = np.arange(BATCH * 2, dtype=np.int32).reshape(BATCH, 2)
SIZES = {"x": 2, "y": 2, "z": 2}


class Room(NamedTuple):
    """A mesh, the parameters of a model on it, and what is done with them."""

    mesh: Any
    params: Any

    def cache(self, batch: Any = BATCH, max_length: Any = ROOM, **how: Any) -> Any:
        how = {"plan": PLAN, "dtype": jnp.float32} | how
        return layouts.init_cache(TINY_GROUPED, self.mesh, batch, max_length, **how)

    def prefill(self, tokens: Any = TOKENS, **given: Any) -> Any:
        how = {"config": TINY_GROUPED, "params": self.params, "plan": PLAN} | given
        cache = how.pop("cache") if "cache" in how else self.cache()
        return layouts.prefill(mesh=self.mesh, cache=cache, tokens=tokens, **how)

    def decode(self, tokens: Any = TOKENS[:, 0], **given: Any) -> Any:
        how = {"config": TINY_GROUPED, "params": self.params, "plan": PLAN} | given
        cache = how.pop("cache") if "cache" in how else self.cache()
        return layouts.decode_step(mesh=self.mesh, cache=cache, tokens=tokens, **how)

    def generate(self, tokens: Any = TOKENS, **given: Any) -> Any:
        how = {"config": TINY_GROUPED, "params": self.params, "plan": PLAN, "max_new_tokens": 2}
        return layouts.generate(mesh=self.mesh, tokens=tokens, **how | given)

    def without(self, name: str) -> Any:
        return {key: value for key, value in self.params.items() if key != name}


@pytest.fixture(scope="module")
def room(mesh_of: Any) -> Room:
    mesh = mesh_of((2, 2, 2), "xyz")
    return Room(mesh, layouts.init(TINY_GROUPED, mesh, jax.random.key(0), jnp.float32))


def refuses(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        call()


# Tokens.


def test_tokens_of_a_step_may_have_a_length_of_one_and_be_lists(room: Room) -> None:
    wanted, _ = room.decode()
    on_one = jax.device_put(TOKENS[:, 0], jax.devices()[1])
    given = (TOKENS[:, :1], TOKENS[:, 0].tolist(), TOKENS[:, :1].tolist(), list(TOKENS[:, 0]))
    for tokens in (*given, list(jnp.asarray(TOKENS[:, 0])), on_one):
        logits, _ = room.decode(tokens)
        np.testing.assert_array_equal(logits, wanted)


def test_prompts_may_be_lists(room: Room) -> None:
    wanted, _ = room.prefill()
    for tokens in (TOKENS.tolist(), list(TOKENS), tuple(map(tuple, TOKENS.tolist()))):
        logits, _ = room.prefill(tokens, lengths=[2] * BATCH)
        np.testing.assert_array_equal(logits, wanted)
    drawn, _ = room.generate(TOKENS.tolist())
    on_one = jax.device_put((TOKENS, np.full(BATCH, 2, np.int32)), jax.devices()[1])
    np.testing.assert_array_equal(drawn, room.generate(on_one[0], lengths=on_one[1])[0])


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (TOKENS[0], "tokens of shape (2,) must be [batch, length]"),
        (TOKENS[0], "write tokens[None] for one sequence"),
        (TOKENS[None], "tokens of shape (1, 8, 2) must be [batch, length]"),
        ([[1, 2], [1], [1, 2, 3]], "lengths 2, 1, 3; pad each to 3 at its end"),
        ([[1, 2], [1]], "pass their lengths as lengths="),
        ([np.array([1, 2]), np.array([1])], "tokens have lengths 2, 1;"),
        ([[1, 2], 3], "tokens are no array of integers"),
        (["in words"], "tokens must be integers, got strings; encode them first"),
        ([[1.0]], "tokens must be integers, got float64"),
        ([[True]], "tokens must be integers, got bool"),
        (None, "tokens must be integers, got None"),
        ([], "tokens of shape (0,) must be [batch, length], neither of them 0"),
    ],
)
def test_tokens_that_are_no_prompts(room: Room, tokens: Any, words: str) -> None:
    refuses(lambda: room.prefill(tokens), words)
    refuses(lambda: room.generate(tokens), words)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (TOKENS, "must be [batch], one token for each sequence; call layouts.prefill"),
        (3, "tokens of shape () must be [batch], one token for each sequence; write [token]"),
        ([1.0] * BATCH, "tokens must be integers, got float64"),
    ],
)
def test_tokens_that_are_no_step(room: Room, tokens: Any, words: str) -> None:
    refuses(lambda: room.decode(tokens), words)


def test_the_advice_about_prompts(room: Room) -> None:
    plan = "WS 2D, heads"
    cache = room.cache(1, plan=plan)
    logits, cache = room.prefill(TOKENS[0][None], cache=cache, plan=plan)
    assert logits.shape == (1, VOCAB)
    refuses(lambda: room.decode(3, cache=cache, plan=plan), "write [token]")
    assert room.decode([3], cache=cache, plan=plan)[0].shape == (1, VOCAB)
    ragged = [[5, 6], [7], *[[8, 9]] * 6]
    refuses(lambda: room.prefill(ragged), "pad each to 2 at its end, with any token")
    padded = [each + [0] * (2 - len(each)) for each in ragged]
    logits, _ = room.prefill(padded, lengths=[len(each) for each in ragged])
    wanted, _ = room.prefill(np.full((BATCH, 1), 7))
    np.testing.assert_allclose(logits[1], wanted[1], rtol=1e-5, atol=1e-5)


# Parameters.


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


# Caches.


def test_a_donated_cache(room: Room) -> None:
    cache = room.cache()
    _, following = room.prefill(cache=cache)
    words = "and return the one to use next: logits, cache = layouts.decode_step("
    for call in (room.prefill, room.decode):
        refuses(lambda call=call: call(cache=cache), words)
    refuses(lambda: layouts.move_cache(TINY_GROUPED, room.mesh, cache, PLAN), words)
    refuses(lambda: layouts.shared_prefix(cache), words)
    logits, _ = room.decode(cache=following)
    assert logits.shape == (BATCH, VOCAB)


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        (None, "cache must be a layouts.Cache, got NoneType; make one with layouts.init_cache"),
        ((1, 2), "cache must be a layouts.Cache, got tuple"),
        ({"k": 1}, "cache must be a layouts.Cache, got dict"),
    ],
)
def test_what_is_no_cache(room: Room, cache: Any, words: str) -> None:
    for call in (room.prefill, room.decode):
        refuses(lambda call=call: call(cache=cache), words)
    refuses(lambda: layouts.move_cache(TINY_GROUPED, room.mesh, cache, PLAN), words)
    refuses(lambda: layouts.shared_prefix(cache), words)


def test_all_that_a_step_returns_is_no_cache(room: Room) -> None:
    refuses(
        lambda: room.decode(cache=room.prefill()), "steps return (logits, cache); give the second"
    )


def test_a_cache_of_another_plan_is_taken(room: Room) -> None:
    wanted, _ = room.decode()
    logits, _ = room.decode(cache=room.cache(plan="WS 2D, heads"))
    np.testing.assert_array_equal(logits, wanted)


def test_what_is_no_prefix(room: Room) -> None:
    for prefix in (room.cache(), TOKENS):
        refuses(
            lambda each=prefix: room.generate(prefix=each), "make one with layouts.shared_prefix("
        )
        refuses(lambda each=prefix: room.cache(prefix=each), "prefix must be a layouts.Prefix, got")
    k = layouts.Entries(jnp.zeros((2, 1, 4, 8)))
    refuses(
        lambda: room.generate(prefix=layouts.Prefix(k, k)),
        "the prefix has shape (2, 1, 4, 8), but tiny-grouped needs (2, 2, 4, 8)",
    )


# Plans and layouts.


def takers(room: Room) -> Iterator[Callable[[Any], Any]]:
    """Everything that takes a plan, and does not run for long."""
    asked = load("decode", batch=BATCH, context=8)
    lowered: dict[str, Any] = {"batch": BATCH, "schedule": "blocking"}
    config, mesh = TINY_GROUPED, room.mesh
    yield lambda plan: room.cache(plan=plan)
    yield lambda plan: layouts.move_cache(config, mesh, room.cache(), plan)
    yield lambda plan: layouts.cache_specs(config, mesh, plan, room.cache())
    yield lambda plan: layouts.lower_decode_step(config, mesh, context=8, plan=plan, **lowered)
    yield lambda plan: layouts.lower_prefill(config, mesh, length=8, plan=plan, **lowered)
    yield lambda plan: cost(config, plan, SIZES, asked, ce.TPU_V4)
    yield lambda plan: layer_work(config, plan, SIZES, asked)


@pytest.mark.parametrize("feedforward", FEEDFORWARDS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_planners_words(feedforward: str, attention: str) -> None:
    wanted = layouts.Partitioning(FEEDFORWARDS[feedforward], ATTENTIONS[attention])
    words = f"{feedforward}, {attention}"
    for each in (words, words.lower(), words + ", 4x4x4, batch 64", words.replace(" ", "  ")):
        assert as_plan(each) == wanted
    assert layouts.Partitioning(feedforward, attention) == wanted


def test_what_the_planner_returns_and_prints_is_a_plan(room: Room) -> None:
    found = layouts.plan("tiny-grouped", mesh_shape=(2, 2, 2), phase="decode", batch=8, context=8)
    assert as_plan(found) == found.partitioning
    for option in found.options:
        assert as_plan(option) == as_plan(str(option)) == option.partitioning
    row = str(found).splitlines()[2]
    assert row.startswith(f"{found.best.feedforward}, {found.best.attention} ")
    for take in takers(room):
        for each in (found, found.best, str(found.best)):
            take(each)
    wanted = room.decode(plan=found.partitioning)[0]
    for each in (found, found.best, str(found.best)):
        np.testing.assert_array_equal(room.decode(plan=each)[0], wanted)


def test_a_plan_in_which_nothing_is_feasible_says_so(room: Room) -> None:
    none = layouts.plan(
        TINY_GROUPED, mesh_shape=SIZES, phase="decode", batch=8, context=8, max_seconds=1e-9
    )
    refuses(
        lambda: room.cache(plan=none), "no layout of tiny-grouped will do for this decode within"
    )


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (layouts.WeightStationary1D(), "that is a feedforward layout alone; write "),
        (
            layouts.WeightStationary1D,
            "write layouts.Partitioning(WeightStationary1D(), HeadSharded())",
        ),
        (layouts.HeadSharded(), "write layouts.Partitioning(WeightStationary2D(), HeadSharded())"),
        (layouts.Partitioning, "is no Partitioning: write layouts.Partitioning("),
        ("WS 2D all-reduce", "such as 'WS 2D all-reduce, heads'"),
        ("heads", "must name a feedforward layout and an attention layout"),
        (
            "WS 2D all-reduc, heads",
            "no feedforward layout is called 'WS 2D all-reduc'; there are 'WS 2D', ",
        ),
        ("WS 2D all-reduc, heads", "; did you mean 'WS 2D all-reduce'?"),
        ("WS 1D, bach xyz", "no attention layout is called 'bach xyz'"),
        ("WS 1D, bach xyz", "; did you mean 'batch xyz'?"),
        ("heads, WS 2D", "no feedforward layout is called 'heads'"),
        ({"feedforward": "WS 2D"}, "is no Partitioning: write layouts.Partitioning("),
        (3, 'or in the planner\'s words "WS 2D, heads"'),
    ],
)
def test_what_is_no_plan(room: Room, plan: Any, words: str) -> None:
    for take in takers(room):
        refuses(lambda take=take: take(plan), words)
    for call in (room.prefill, room.decode, room.generate):
        refuses(lambda call=call: call(plan=plan), words)
    refuses(lambda: room.generate(prefill_plan=plan), words)


def test_a_pair_of_layouts() -> None:
    pair: Any = layouts.Partitioning
    swapped = "the feedforward layout comes first; write Partitioning(WeightStationary1D(), HeadSh"
    refuses(lambda: pair(layouts.HeadSharded(), layouts.WeightStationary1D()), swapped)
    assert pair(layouts.WeightStationary2D, layouts.BatchSharded) == PLAN
    one, head = layouts.WeightStationary1D(), layouts.HeadSharded()
    refuses(lambda: pair(one, one), "is no attention layout, but a feedforward layout")
    refuses(lambda: pair(head, head), "is no feedforward layout, but an attention layout")
    refuses(lambda: pair(PLAN, head), "is no feedforward layout, but Partitioning with both")
    refuses(
        lambda: pair(None, head), "None is no feedforward layout; choose WeightStationary1D(), "
    )
    refuses(lambda: pair(one, 3), "3 is no attention layout; choose HeadSharded()")
    refuses(lambda: layouts.activation_spec(PLAN), "is no feedforward layout")
    assert layouts.activation_spec(layouts.WeightStationary1D) == layouts.activation_spec(one)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: layouts.BatchSharded(3), 'choose ("z",), ("y", "z") or ("x", "y", "z")'),
        (lambda: layouts.BatchSharded("xyz"), 'choose ("z",), ("y", "z") or ("x", "y", "z")'),
        (lambda: layouts.WeightGathered(None), 'choose ("x",), ("x", "y") or ("x", "y", "z")'),
        (lambda: layouts.WeightStationary2D("batch"), "by_batch='batch' must be True or False"),
        (lambda: layouts.WeightStationary2D(True, 1), "all_reduce=1 must be True or False"),
        (lambda: layouts.Rotary("1e4"), "rotary base='1e4' must be a number"),
        (lambda: layouts.Rotary(fraction=True), "rotary fraction=True must be a number"),
        (lambda: layouts.Rotary(interleaved="no"), "interleaved='no' must be True or False"),
    ],
)
def test_settings_of_layouts_and_rotary(make: Any, words: str) -> None:
    refuses(make, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": "Serial"}, "; did you mean 'serial'?"),
        ({"activation": "gelu-tanh"}, "; did you mean 'gelu_tanh'?"),
        ({"norm": "rms_norm"}, "; did you mean 'rmsnorm'?"),
        ({"gated": "yes"}, "gated='yes' must be True or False"),
        ({"rotary": True}, "rotary=True must be a Rotary() or None"),
        ({"rotary": layouts.Rotary}, "must be a Rotary() or None"),
        ({"norm_epsilon": "1e-6"}, "norm_epsilon='1e-6' must be positive"),
        ({"heads": 8.0}, "heads=8.0 must be a positive integer; write 8"),
    ],
)
def test_fields_of_a_config(change: Any, words: str) -> None:
    refuses(lambda: dataclasses.replace(TINY_GROUPED, **change), words)


def test_numpys_floats_are_numbers() -> None:
    rotary = layouts.Rotary(np.float32(1e4), np.float32(0.5))
    config = dataclasses.replace(TINY_GROUPED, rotary=rotary, norm_epsilon=np.float32(1e-6))
    assert config.rotary_dims == 4


# Layers.


def layer(room: Room, kind: Any, layout: Any, *attention: Any, config: Any = TINY_GROUPED) -> Any:
    x = jnp.ones((BATCH, 2, 32))
    weights = jax.tree.map(lambda w: w[0], room.params["blocks"])
    return jax.eval_shape(lambda: kind(x, weights, config, layout, *attention, mesh=room.mesh))


def test_layers_take_names_and_classes(room: Room) -> None:
    shape = (BATCH, 2, 32)
    for layout in ("WS 2D", layouts.WeightStationary2D):
        assert layer(room, layouts.feedforward, layout, config="tiny-grouped").shape == shape
    for layout, attention in (("WS 2D", "batch xyz"), (PLAN.feedforward, layouts.BatchSharded)):
        y, _ = layer(room, layouts.attention, layout, attention, config="tiny-grouped")
        assert y.shape == shape


def test_layers_refuse_what_is_no_layout(room: Room) -> None:
    head, one = layouts.HeadSharded(), layouts.WeightStationary1D()
    refuses(lambda: layer(room, layouts.feedforward, PLAN), "is no feedforward layout, but Partit")
    refuses(
        lambda: layer(room, layouts.feedforward, head), "is no feedforward layout, but an atten"
    )
    refuses(lambda: layer(room, layouts.feedforward, one, config=3), "config=3 is no ModelConfig")
    for kind in (layouts.attention, layouts.parallel_block, layouts.serial_block):
        refuses(
            lambda kind=kind: layer(room, kind, head, one), "is no feedforward layout, but an at"
        )
        refuses(
            lambda kind=kind: layer(room, kind, one, one), "is no attention layout, but a feedf"
        )
        refuses(lambda kind=kind: layer(room, kind, one, "head"), "; did you mean 'heads'?")


MISSHAPEN = (
    (lambda w: w | {"w_in": w["w_in"][:, :32]}, "weights['w_in'] has shape (32, 32), but a lay"),
    (lambda w: w | {"w_in": w["w_in"][None]}, "give those of one layer, such as w[0] of stacked"),
)
ILL_NAMED = (
    (lambda w: {k: v for k, v in w.items() if k != "w_gate"}, "have no 'w_gate', which a layer"),
    (lambda w: w | {"b_in": w["w_in"][0]}, "have 'b_in', which a layer of this config does not"),
    (lambda w: [w], "weights must be those of one layer, a dict with "),
    (lambda w: {"blocks": w}, "weights are those of a whole model; give those of one layer"),
)


@pytest.mark.parametrize(
    ("whole", "change", "words"),
    [
        *((True, *each) for each in (*MISSHAPEN, *ILL_NAMED)),
        *((False, *each) for each in ILL_NAMED),
    ],
)
def test_weights_of_a_layer(room: Room, whole: bool, change: Any, words: str) -> None:
    x, weights = jnp.ones((BATCH, 2, 32)), jax.tree.map(lambda w: w[0], room.params["blocks"])
    mesh = room.mesh if whole else None
    for kind in (layouts.feedforward, layouts.serial_block, layouts.parallel_block):
        attention = () if kind is layouts.feedforward else (layouts.HeadSharded(),)

        def call(kind: Any = kind, attention: Any = attention) -> Any:
            return kind(x, change(weights), TINY_GROUPED, PLAN.feedforward, *attention, mesh=mesh)

        refuses(call, words)


def test_activations_of_a_layer(room: Room) -> None:
    weights = jax.tree.map(lambda w: w[0], room.params["blocks"])
    for shape in ((BATCH, 32), (BATCH, 2, 16)):
        x = jnp.ones(shape)
        refuses(
            lambda x=x: layouts.feedforward(x, weights, TINY_GROUPED, "WS 2D", mesh=room.mesh),
            f"x of shape {shape} must be [batch, length, d_model]",
        )
    x, k = jnp.ones((BATCH, 2, 32)), jnp.zeros((BATCH, 2, 4, 8))
    entries, lengths = layouts.Entries(k), np.zeros(BATCH, np.int32)

    def attends(**how: Any) -> Any:
        pair = ("WS 2D", "batch xyz")
        return layouts.attention(x, weights, TINY_GROUPED, *pair, mesh=room.mesh, **how)

    pair = "must be the keys and values of one layer, a pair of layouts.Entries(array [B, K, S, D])"
    for past in ((k, k), room.cache(), entries):
        refuses(lambda past=past: attends(past=past, lengths=lengths), pair)
    refuses(lambda: attends(prefix=layouts.Prefix(entries, entries)), "a pair of layouts.Entries(")
    refuses(
        lambda: attends(past=(entries, entries)), "past is given without lengths; give lengths="
    )
    refuses(
        lambda: attends(past=(entries, entries), lengths=lengths[:3]),
        "lengths of shape (3,) must be (8,), one per sequence",
    )
    y, _ = jax.eval_shape(lambda: attends(past=(entries, entries), lengths=lengths.tolist()))
    assert y.shape == x.shape


# Sizes, flags and words.


def sized(room: Room) -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """Everything that takes a size."""
    config, mesh = TINY_GROUPED, room.mesh
    asked: dict[str, Any] = {"mesh_shape": (2, 2, 2), "phase": "decode", "batch": 8, "context": 8}
    lowered: dict[str, Any] = {"plan": WORDS, "schedule": "blocking"}
    yield "batch", lambda n: layouts.plan(config, **asked | {"batch": n})
    yield "batch", lambda n: layouts.plan(config, **asked | {"batch": [n, 16]})
    yield "context", lambda n: layouts.plan(config, **asked | {"context": n})
    yield "length", lambda n: layouts.plan(config, **asked | {"phase": "prefill", "length": n})
    yield "chips", lambda n: layouts.plan(config, **asked | {"mesh_shape": None, "chips": n})
    yield "mesh_shape", lambda n: layouts.plan(config, **asked | {"mesh_shape": (n, 1, 1)})
    yield "batches", lambda n: layouts.sweep(config, phase="decode", batches=n, chips=8, context=8)
    yield "chips", lambda n: layouts.sweep(config, phase="decode", batches=8, chips=[n], context=8)
    yield "batch", lambda n: load("decode", batch=n, context=8)
    yield "context", lambda n: load("decode", batch=8, context=n)
    yield "batch", lambda n: layouts.default_decode(config, mesh, n, 8)
    yield "length", lambda n: layouts.default_prefill(config, mesh, 8, n, 8)
    yield "batch", lambda n: room.cache(n)
    yield "max_length", lambda n: room.cache(8, n)
    yield (
        "context",
        lambda n: layouts.lower_decode_step(config, mesh, batch=8, context=n, **lowered),
    )
    yield "batch", lambda n: layouts.lower_decode_step(config, mesh, batch=n, context=8, **lowered)
    yield "length", lambda n: layouts.lower_prefill(config, mesh, batch=8, length=n, **lowered)
    yield "d_model", lambda n: layouts.ModelConfig(2, n, 64, 8, 2, 8, 64)


def test_numpys_integers_are_sizes(room: Room) -> None:
    for _, call in sized(room):
        call(np.int64(8))
        call(np.array(8, np.int32))
    drawn, _ = room.generate(max_new_tokens=np.int32(2))
    assert drawn.shape == (BATCH, 2)
    counts = np.array([8, 16])
    found = layouts.plan("tiny-grouped", chips=8, phase="decode", batch=counts, context=8)
    assert {option.batch for option in found.options} == {8, 16}


@pytest.mark.parametrize("value", [True, 8.0, 8.5, "8", None, 0, -8, np.bool_(True), np.float32(8)])
def test_what_is_no_size(room: Room, value: Any) -> None:
    calls = [*sized(room), ("max_new_tokens", lambda n: room.generate(max_new_tokens=n))]
    optional = {"batch", "chips", "mesh_shape", "batches"}
    for name, call in calls:
        if value is None and name in optional:
            continue
        with pytest.raises(ValueError, match=f"{name}.*positive integer") as refused:
            call(value)
        if value == 8.0 and name != "mesh_shape":
            assert "write 8" in str(refused.value)


def test_a_traced_size(room: Room) -> None:
    words = "sizes must be known while tracing: make it a static argument of jit"
    refuses(lambda: jax.jit(lambda n: room.cache(n))(8), words)


def test_meshes_by_shape() -> None:
    mesh = jax.sharding.AbstractMesh((2, 4, 1), ("x", "y", "z"))
    for shape in (mesh, {"z": 1, "x": 2, "y": 4}, "2x4x1", [2, 4, 1], np.array([2, 4, 1])):
        found = layouts.plan("tiny-grouped", mesh_shape=shape, phase="decode", batch=8, context=8)
        assert found.best.sizes == {"x": 2, "y": 4, "z": 1}
    how: dict[str, Any] = {"phase": "decode", "batch": 8, "context": 8}
    for bad in (8, (2, 4), "2x4", {"x": 2}, (2, 4, "1"), None):
        if bad is not None:
            refuses(
                lambda bad=bad: layouts.plan(TINY_GROUPED, mesh_shape=bad, **how),
                "must be three positive integers, the sizes of x, y and z, such as (2, 2, 2)",
            )
        refuses(
            lambda bad=bad: cost(TINY_GROUPED, PLAN, bad, load(**how), ce.TPU_V4),
            "must be three positive integers",
        )


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"phase": "Decode"}, "; did you mean 'decode'?"),
        ({"phase": "pre-fill"}, "; did you mean 'prefill'?"),
        ({"phase": None}, "phase=None is neither 'decode' nor 'prefill'"),
        ({"objective": "latencey"}, "; did you mean 'latency'?"),
        ({"overlap": False}, "overlap=False is none of ('none', 'auto')"),
        ({"weights": "bfloat16"}, "; did you mean 'bf16'?"),
        ({"cache": "INT8"}, "; did you mean 'int8'?"),
        ({"weights": jnp.int8}, "is neither 'bf16' nor 'int8'"),
        ({"chip": "v44"}, "no chip is known by that name; give one of 'v4'"),
        ({"chip": 4}, "chip=4 is no collective_einsum.Chip"),
        ({"max_seconds": "1"}, "max_seconds='1' must be a number of seconds"),
        ({"max_seconds": float("nan")}, "max_seconds=nan must be a number of seconds"),
        ({"max_seconds": True}, "max_seconds=True must be a number of seconds"),
    ],
)
def test_words_of_a_plan(given: Any, words: str) -> None:
    how: dict[str, Any] = {"mesh_shape": (2, 2, 2), "phase": "decode", "batch": 8, "context": 8}
    refuses(lambda: layouts.plan(TINY_GROUPED, **how | given), words)
    meant = re.search("did you mean '(.*)'", words)
    if meant:
        ((name, _),) = given.items()
        found = layouts.plan(TINY_GROUPED, **how | {name: meant[1], "length": 8})
        assert found.feasible


@pytest.mark.parametrize("name", ["palm-62b", "PaLM 62B", "palm62b", "PALM_62B"])
def test_models_by_name(name: str) -> None:
    how: dict[str, Any] = {"mesh_shape": (4, 4, 4), "phase": "decode", "batch": 64, "context": 2048}
    wanted = layouts.plan(layouts.PALM_62B, **how)
    assert layouts.plan(name, chip="v4", **how) == wanted
    assert layouts.model(name) is layouts.PALM_62B
    asked = load("decode", batch=64, context=2048)
    assert cost(name, wanted, (4, 4, 4), asked, "TPU v4") == wanted.cost


def test_models_are_taken_by_name_and_nothing_else(room: Room) -> None:
    config: Any
    for config in ("tiny-group", None, layouts.ModelConfig, {"layers": 2}, room.mesh):
        words = (
            "did you mean 'tiny-grouped'?" if config == "tiny-group" else "is no ModelConfig; give"
        )
        for call in (
            lambda config=config: layouts.init(config, room.mesh, jax.random.key(0)),
            lambda config=config: layouts.init_cache(config, room.mesh, 8, 8),
            lambda config=config: layouts.move_cache(config, room.mesh, room.cache(), PLAN),
            lambda config=config: layouts.param_specs(config, room.mesh),
            lambda config=config: layouts.lower_prefill(config, room.mesh, batch=8, length=8),
            lambda config=config: layouts.default_decode(config, room.mesh, 8, 8),
            lambda config=config: layouts.sweep(config, phase="decode", context=8),
            lambda config=config: room.prefill(config=config),
            lambda config=config: room.decode(config=config),
            lambda config=config: room.generate(config=config),
        ):
            refuses(call, words)
    made = layouts.init("tiny-grouped", room.mesh, jax.random.key(0), "float32")
    jax.tree.map(np.testing.assert_array_equal, made, room.params)


def test_flags_are_true_or_false(room: Room) -> None:
    lowered: dict[str, Any] = {"batch": 8, "context": 8, "plan": WORDS}
    for name, call in (
        ("int8", lambda: room.cache(int8="int8")),
        ("int8_cache", lambda: room.generate(int8_cache="int8")),
        (
            "unrolled",
            lambda: layouts.init("tiny-grouped", room.mesh, jax.random.key(0), unrolled=2),
        ),
        (
            "int8_cache",
            lambda: layouts.lower_decode_step("tiny-grouped", room.mesh, int8_cache=1, **lowered),
        ),
        (
            "unrolled",
            lambda: layouts.lower_decode_step("tiny-grouped", room.mesh, unrolled=1, **lowered),
        ),
    ):
        with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
            call()


def test_pareto_and_sweep() -> None:
    found = layouts.plan(TINY_GROUPED, chips=(4, 8), phase="decode", batch=(8, 12), context=8)
    assert layouts.pareto(found) == layouts.pareto(found.options) == layouts.pareto(found.feasible)
    options: Any
    for options in (None, [found], found.best, "all"):
        refuses(
            lambda options=options: layouts.pareto(options), "options must be a sequence of Opt"
        )
    refuses(
        lambda: layouts.sweep(TINY_GROUPED, phase="decode", context=8, batch=8),
        "takes no batch=; give batches=",
    )
    refuses(
        lambda: layouts.sweep(TINY_GROUPED, phase="decode", context=8, mesh_shape=(2, 2, 2)),
        "takes no mesh_shape=; give chips=, or call layouts.plan",
    )
    assert layouts.sweep("tiny-grouped", phase="decode", context=8, batches=8, chips=8, chip="v5e")


# Meshes, keys, dtypes and sampling.


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
