"""Prompts read in layouts that shard another cache than the one that they are read into."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

import layouts
from layouts import PALM_540B, HeadSharded, Partitioning, reference
from layouts.decoding import decoder
from layouts.decoding.compiled_step import Program
from layouts.models.named_models import TINY_GROUPED, TINY_MULTIQUERY
from layouts.models.params import init
from layouts.partitionings.partitioning import placement
from layouts.planning.defaults import default_reader
from tests.products import mostly_exhaustive

from .arrangements import ATTENTIONS, BY_POSITION, FEEDFORWARDS
from .models import prompts

pytestmark = pytest.mark.slow

BATCH, LENGTH, NEW = 3, 5, 3
LENGTHS = np.array([5, 1, 3], np.int32)
SEEDS = np.arange(BATCH, dtype=np.uint32)
READERS = ("WS 2D position, heads", "WS 1D, heads", "WS 2D, heads")
HOLDERS = ("WS 2D all-reduce, heads", "WS 2D, batch xyz", "WS 1D, batch z", "WG XY, batch yz")


@pytest.mark.parametrize(
    "case",
    mostly_exhaustive(
        list(itertools.product(itertools.product(HOLDERS, READERS), [False, True])),
        [((holder, READERS[i % 3]), i % 2 == 1) for i, holder in enumerate(HOLDERS * 2)],
    ),
    ids=str,
)
def test_generation_reads_in_any_layouts_that_leave_the_batch_whole(
    mesh_of: Any, case: tuple[tuple[str, str], bool]
) -> None:
    (holder, reader), int8 = case
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)
    options: dict[str, Any] = {
        "max_new_tokens": NEW,
        "sampling": layouts.Sampling(temperature=1.0, top_k=20),
        "end_tokens": (20, 46),
    }

    def run(**how: Any) -> Any:
        given = {"lengths": LENGTHS, "seeds": SEEDS, "int8_cache": int8, "plan": holder}
        return layouts.generate(config, mesh, params, np.asarray(tokens), **options, **given, **how)

    wanted = reference.generate(
        params, config, tokens, jnp.asarray(LENGTHS), seeds=jnp.asarray(SEEDS), **options
    )
    found = run(prefill_plan=reader)
    wanted = run() if int8 else wanted
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("with_prefix", [False, True], ids=["alone", "prefix"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_step_goes_on_where_others_read(
    mesh_of: Any, holder: str, with_prefix: bool, explicit: bool
) -> None:
    """The cache comes out as it came in; what was read and what follows is as of one plan."""
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz", explicit=explicit)
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    tokens = np.asarray(prompts(config, BATCH, LENGTH))
    prefix = None
    if with_prefix:
        before = layouts.init_cache(config, mesh, 1, 4, plan=holder, dtype=jnp.float32)
        _, before = layouts.prefill(config, mesh, params, before, tokens[:1, :4], plan=holder)
        prefix = layouts.shared_prefix(before)

    def run(reader: str) -> Any:
        cache = layouts.init_cache(
            config, mesh, BATCH, 9, plan=holder, dtype=jnp.float32, prefix=prefix
        )
        came = [(x.shape, x.sharding) for x in jax.tree.leaves(cache)]
        reads, keeps = (Program.of(config, mesh, plan, "auto", params) for plan in (reader, holder))
        logits, cache = decoder.extender(reads, keeps)(params, cache, tokens, LENGTHS, reads=False)
        for x, (shape, sharding) in zip(jax.tree.leaves(cache), came, strict=True):
            assert x.shape == shape
            assert x.sharding.is_equivalent_to(sharding, x.ndim)
        after, cache = layouts.decode_step(config, mesh, params, cache, tokens[:, 0], plan=holder)
        return logits, after, cache.lengths

    found, wanted = run(READERS[0]), run(holder)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), found, wanted)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_cache_is_padded_for_what_reads_it(mesh_of: Any, batch: int) -> None:
    """Both shard it alike, but the layouts that read cut the batch of twice as many sequences."""
    config, mesh = TINY_MULTIQUERY, mesh_of((2, 2, 2), "xyz")
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    tokens = np.asarray(prompts(config, batch, LENGTH))
    reader, holder = "WS 2D batch, heads", "WS 2D all-reduce, heads"
    reads, keeps = (Program.of(config, mesh, plan, "auto", params) for plan in (reader, holder))
    assert (reads.batch_multiple, keeps.batch_multiple) == (4, 2)
    found = []
    for step in (decoder.extender(reads, keeps), decoder.extender(keeps)):
        cache = layouts.init_cache(config, mesh, batch, 9, plan=holder, dtype=jnp.float32)
        counts = np.full((batch,), LENGTH, np.int32)
        logits, cache = step(params, cache, tokens, counts, reads=False)
        after, _ = layouts.decode_step(config, mesh, params, cache, tokens[:, 0], plan=holder)
        found.append((logits, after))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), *found)


def test_what_defaults_read_and_hold_apart(mesh_of: Any) -> None:
    batch, config = 2, dataclasses.replace(TINY_MULTIQUERY, d_model=512, d_ff=4096)
    mesh, length = mesh_of((4, 2, 1), "xyz"), 64
    plan = layouts.default_decode(config, mesh, batch, length + 2, chip="v5e")
    reader = default_reader(config, mesh, batch, length, length + 2, chip="v5e")
    assert placement(config, mesh, reader).batch_axes == ()
    assert placement(config, mesh, plan).batch_axes != ()
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    tokens = prompts(config, batch, length)
    lengths = np.arange(length, length - batch, -1, dtype=np.int32)
    found = layouts.generate(
        config, mesh, params, tokens, lengths=lengths, max_new_tokens=2, chip="v5e"
    )
    wanted = reference.generate(
        jax.device_get(params), config, tokens, jnp.asarray(lengths), max_new_tokens=2
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    cache = layouts.init_cache(config, mesh, batch, length + 2, dtype=jnp.float32, chip="v5e")
    for step in range(2):
        # The second prompt goes on where the first one ended.
        logits, cache = layouts.prefill(
            config,
            mesh,
            params,
            cache,
            tokens if step == 0 else np.asarray(found[0])[:, :1],
            lengths=lengths if step == 0 else None,
            chip="v5e",
        )
        np.testing.assert_array_equal(np.argmax(logits, -1), np.asarray(found[0])[:, step])


def test_what_covers_what(mesh_of: Any) -> None:
    mesh = mesh_of((2, 2, 2), "xyz")
    for config in (TINY_MULTIQUERY, TINY_GROUPED):
        for layout in FEEDFORWARDS:
            for attention in ATTENTIONS:
                where = placement(config, mesh, Partitioning(layout, attention))
                assert where.covers(where)
                heads = placement(config, mesh, Partitioning(BY_POSITION, HeadSharded()))
                assert heads.covers(where) == (heads.kv_axes == where.kv_axes)
                assert where.covers(heads) == (
                    (where.batch_axes, where.kv_axes) == ((), heads.kv_axes)
                )


def test_the_cache_that_a_plan_shards_is_covered_or_refused(mesh_of: Any) -> None:
    config, mesh = TINY_GROUPED, mesh_of((2, 2, 2), "xyz")
    params, tokens = init(jax.random.key(0), config, jnp.float32), prompts(config, BATCH, LENGTH)
    for plan, reader in (
        ("WS 2D, batch xyz", "WS 2D, heads"),
        ("WS 2D, heads", "WS 2D, batch xyz"),
        ("WS 2D, batch xyz", "WS 2D, batch z"),
    ):
        with pytest.raises(ValueError, match=r"one for prefill that does not shard the batch"):
            layouts.generate(
                config, mesh, params, tokens, max_new_tokens=1, plan=plan, prefill_plan=reader
            )


@pytest.mark.parametrize("length", [64, 128, 256, 640, 2048])
@pytest.mark.parametrize("batch", [1, 2, 64])
def test_defaults_read_prompts_about_as_fast_as_any(batch: int, length: int) -> None:
    """Of one sequence, decoding in layouts that store four is fastest; to read a prompt in layouts
    that shard the cache alike takes four times as long as to read it in others."""
    mesh = AbstractMesh((4, 4, 4), ("x", "y", "z"))
    reader = default_reader(PALM_540B, mesh, batch, length, length, chip="v4")
    how: dict[str, Any] = {"mesh_shape": (4, 4, 4), "chip": "v4", "batch": batch, "length": length}
    found = layouts.plan(PALM_540B, phase="prefill", **how)
    took = next(o.cost.seconds for o in found.options if o.cost and o.partitioning == reader)
    assert took <= 1.1 * found.cost.seconds
