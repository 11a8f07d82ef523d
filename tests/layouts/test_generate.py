"""Generation against the reference, token by token, and what a sequence does not depend on."""

from __future__ import annotations

import itertools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import collective_einsum as ce
import layouts
from layouts import reference
from layouts.models.named_models import TINY_GROUPED, TINY_PADDED
from layouts.models.params import init
from tests.products import sampled

from .models import name, prompts

pytestmark = pytest.mark.slow

BATCH, LENGTH, NEW = 8, 4, 5
LENGTHS = np.array([4, 1, 3, 2, 4, 1, 2, 3], np.int32)
SEEDS = np.arange(BATCH, dtype=np.uint32)
PLANS = (
    layouts.Partitioning(layouts.WeightStationary2D(), layouts.BatchSharded()),
    layouts.Partitioning(layouts.WeightGathered(("x",)), layouts.HeadSharded()),
)
SAMPLINGS = (
    layouts.Sampling(),
    layouts.Sampling(temperature=1.0, top_k=20, top_p=0.9),
)


@pytest.mark.parametrize(
    ("how", "config"),
    sampled(list(itertools.product(PLANS, SAMPLINGS)), [TINY_PADDED, TINY_GROUPED]),
    ids=name,
)
def test_equals_the_reference(mesh_of: Any, how: Any, config: Any) -> None:
    plan, sampling = how
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)
    options: dict[str, Any] = {
        "max_new_tokens": NEW,
        "sampling": sampling,
        # Tokens that come up, so that some sequences end early and others do not.
        "end_tokens": (20, 46),
        "pad_token": 63,
    }
    drawn, counts = layouts.generate(
        config,
        mesh_of((2, 2, 2), "xyz"),
        params,
        np.asarray(tokens),
        lengths=LENGTHS,
        seeds=SEEDS,
        plan=plan,
        **options,
    )
    wanted, wanted_counts = reference.generate(
        params, config, tokens, jnp.asarray(LENGTHS), seeds=jnp.asarray(SEEDS), **options
    )
    np.testing.assert_array_equal(drawn, wanted)
    np.testing.assert_array_equal(counts, wanted_counts)


def test_a_sequence_does_not_depend_on_its_neighbours(mesh_of: Any) -> None:
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)
    turned = np.roll(np.arange(BATCH), 3)

    def run(order: np.ndarray) -> np.ndarray:
        drawn, _ = layouts.generate(
            config,
            mesh,
            params,
            np.asarray(tokens)[order],
            lengths=LENGTHS[order],
            seeds=SEEDS[order],
            max_new_tokens=NEW,
            sampling=layouts.Sampling(temperature=1.0),
        )
        return np.asarray(drawn)

    np.testing.assert_array_equal(run(turned), run(np.arange(BATCH))[turned])


def test_compiles_once(mesh_of: Any, caplog: pytest.LogCaptureFixture) -> None:
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    params = init(jax.random.key(0), config, jnp.float32)

    def compiled(seed: int, temperature: float) -> list[str]:
        caplog.clear()
        with jax.log_compiles():
            layouts.generate(
                config,
                mesh,
                params,
                np.asarray(prompts(config, BATCH, LENGTH, seed)),
                seeds=SEEDS + np.uint32(seed),
                max_new_tokens=2,
                sampling=layouts.Sampling(temperature=temperature),
            )
        return [record.getMessage() for record in caplog.records]

    assert any("Compiling" in message for message in compiled(0, 1.0))
    assert not any("Compiling" in message for message in compiled(1, 0.5))


def test_arguments_as_people_have_them(mesh_of: Any) -> None:
    """One end token or several, of any kind; sizes of numpy; lists for each sequence."""
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)

    def run(**options: Any) -> list[list[int]]:
        given = {"max_new_tokens": 2, "sampling": layouts.Sampling(1.0), "seeds": SEEDS} | options
        drawn, _ = layouts.generate(config, mesh, params, np.asarray(tokens), **given)
        return np.asarray(drawn).tolist()

    whole = run(sampling=layouts.Sampling([1.0] * BATCH), seeds=SEEDS.tolist())
    assert whole == run(seeds=SEEDS.astype(np.int8), max_new_tokens=np.int64(2))
    # Seeds that are alike in their last 32 bits.
    assert whole != run(seeds=SEEDS.astype(np.int64) + 2**32)
    end = whole[3][0]
    wanted = [[row[0], 63 if row[0] == end else row[1]] for row in whole]
    for ends in (
        end,
        (end,),
        [np.int64(end)],
        np.array([end]),
        jnp.array(end),
        {end},
        range(end, end + 1),
    ):
        assert run(end_tokens=ends, pad_token=np.int32(63)) == wanted
    other = next(row[0] for row in whole if row[0] != end)
    wanted = [[row[0], 63 if row[0] in (end, other) else row[1]] for row in whole]
    assert run(end_tokens=jnp.array([end, other, end]), pad_token=jnp.array(63)) == wanted


def test_poisoned_weights_draw_tokens_of_the_vocabulary(mesh_of: Any) -> None:
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)
    params["final_norm"]["scale"] = params["final_norm"]["scale"] * jnp.nan
    for how in SAMPLINGS:
        drawn, _ = layouts.generate(
            config, mesh, params, np.asarray(tokens), max_new_tokens=2, sampling=how, seeds=SEEDS
        )
        assert 0 <= np.min(drawn) <= np.max(drawn) < config.vocab


def test_refuses_in_words(mesh_of: Any) -> None:
    config, mesh = TINY_PADDED, mesh_of((2, 2, 2), "xyz")
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)
    with pytest.raises(ValueError, match="max_new_tokens=0 must be a positive integer"):
        layouts.generate(config, mesh, params, tokens, max_new_tokens=0)
    with pytest.raises(ValueError, match=r"token 64 is not in the vocabulary .* 0 to 63"):
        layouts.generate(config, mesh, params, tokens, max_new_tokens=1, end_tokens=(64,))
    for options, message in (
        ({"max_new_tokens": 2.0}, r"max_new_tokens=2\.0 must be a positive integer"),
        ({"max_new_tokens": True}, r"max_new_tokens=True must be a positive integer"),
        ({"pad_token": 64}, r"token 64 is not in the vocabulary"),
        ({"pad_token": 1.5}, r"pad_token=1\.5 must be one integer"),
        ({"end_tokens": -1}, r"token -1 is not in the vocabulary"),
        ({"end_tokens": None}, r"end_tokens=None must be one token, or a sequence of them"),
        ({"end_tokens": (1.5,)}, r"end_tokens=\(1\.5,\) must be one token"),
        ({"end_tokens": [[1], [2]]}, r"end_tokens=\[\[1\], \[2\]\] must be one token"),
        ({"seeds": 3}, r"seeds of int64 and shape \(\) must be .* shape \(8,\), one for each row"),
        ({"seeds": [0.5] * 8}, r"seeds of float64 and shape \(8,\) must be integers"),
        ({"seeds": [True] * 8}, r"seeds of bool and shape"),
        ({"seeds": [2**64] * 8}, r"seeds of object .* must be integers of 64 bits at most"),
        ({"sampling": 1.0}, r"sampling=1\.0 must be a layouts\.Sampling"),
        ({"sampling": layouts.Sampling([1.0] * 3)}, r"temperature of shape \(3,\) must be one"),
        (
            {"sampling": layouts.Sampling(cast(Any, "hot"))},
            r"sampling\.temperature='hot' must be a number",
        ),
    ):
        given: dict[str, Any] = {"max_new_tokens": 1} | options
        with pytest.raises(ValueError, match=message):
            layouts.generate(config, mesh, params, tokens, **given)
    with pytest.raises(ValueError, match=r"end_tokens=.* known before anything is compiled"):
        jax.jit(
            lambda end: layouts.generate(
                config, mesh, params, tokens, max_new_tokens=1, end_tokens=end
            )
        )(3)
    lengths = np.array([1, 1, 0, 1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="prompt 2 has length 0"):
        layouts.generate(config, mesh, params, tokens, max_new_tokens=1, lengths=lengths)
    with pytest.raises(ValueError, match="choose attention layouts that agree"):
        layouts.generate(
            config, mesh, params, tokens, max_new_tokens=1, plan=PLANS[0], prefill_plan=PLANS[1]
        )


@pytest.mark.parametrize("unrolled", [False, True])
def test_int8_matrices_among_others(mesh_of: Any, unrolled: bool) -> None:
    """Quantized from float32, in a model of bfloat16; all of one layer, or some of every layer."""
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    exact = layouts.init(config, mesh, jax.random.key(0), jnp.float32, unrolled=unrolled)
    params = jax.tree.map(lambda w: w.astype(jnp.bfloat16), exact)
    if unrolled:
        first = {
            name: ce.quantize(w, w.ndim - 2) if name.startswith("w_") else params["blocks"][0][name]
            for name, w in exact["blocks"][0].items()
        }
        mixed = params | {"blocks": [first, *params["blocks"][1:]]}
    else:
        some = {name: ce.quantize(exact["blocks"][name], 1) for name in ("w_gate", "w_kv")}
        tables = {"unembedding": ce.quantize(exact["unembedding"], 1)}
        mixed = params | tables | {"blocks": params["blocks"] | some}
    plain = jax.tree.map(
        lambda w: w.dequantize() if isinstance(w, ce.Quantized) else w.astype(jnp.float32),
        mixed,
        is_leaf=lambda w: isinstance(w, ce.Quantized),
    )
    tokens = prompts(config, 8, 6)
    cache = layouts.init_cache(config, mesh, 8, 8)
    found, cache = layouts.prefill(config, mesh, mixed, cache, tokens)
    wide_cache = layouts.init_cache(config, mesh, 8, 8, dtype=jnp.float32)
    want, wide_cache = layouts.prefill(config, mesh, plain, wide_cache, tokens)
    np.testing.assert_allclose(found, want, atol=0.05 * float(jnp.abs(want).max()))
    found, _ = layouts.decode_step(config, mesh, mixed, cache, tokens[:, 0])
    want, _ = layouts.decode_step(config, mesh, plain, wide_cache, tokens[:, 0])
    np.testing.assert_allclose(found, want, atol=0.05 * float(jnp.abs(want).max()))
    drawn, counts = layouts.generate(config, mesh, mixed, tokens, max_new_tokens=2)
    assert drawn.shape == (8, 2)
    assert (counts == 2).all()
