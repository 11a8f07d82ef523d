"""The whole decoder under one shard_map: prefill and decode steps.

The same jitted functions run and lower: `lowering` only gives them shapes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped
from jax.typing import ArrayLike

from collective_einsum.chips import Chip, traced_chip

from ..arguments import Tokens, as_next_tokens
from ..layers.block import norm_of
from ..layers.embedding import embed
from ..layers.kv_cache import (
    begin,
    empty_cache,
    stored_like,
    with_stored_batch,
)
from ..layers.layer_context import make_step
from ..mesh import axis_collectives as ax
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import ScheduleLike
from ..models.cache import Cache
from ..models.config import ModelConfig
from ..models.params import Params, activation_dtype, standing_for
from ..partitionings.cache_stores import cache_stores, store_of
from ..partitionings.partitioning import PlanLike
from ..partitionings.row_order import last_rows, own_rows
from ..planning.defaults import default_decode, default_prefill, default_reader
from ..planning.schedule_layers import LayerSizes, block_schedules
from . import step_checks as checks
from .attention_masks import Mask, right_padded
from .compiled_step import Program, load_of
from .layer_loops import append_layers, fill_layers, vectors_cut
from .unembedding import log_probabilities, logits_of


def prefill(
    config: ModelConfig | str,
    mesh: MeshLike,
    params: Params,
    cache: Cache,
    tokens: Tokens,
    *,
    lengths: ArrayLike | Sequence[int] | None = None,
    attention_mask: Mask | None = None,
    plan: PlanLike | None = None,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads a chunk of tokens into each sequence's cache: a prompt, or what follows one.

    Args:
      config, mesh: as `init`.
      params: as `init` made them, stacked or unrolled.
      cache: as `init_cache` or another step left it, under the same attention layout. Donated: use
        the one returned.
      tokens: [batch, T] integers, padded at the end.
      lengths: [batch] integers, how many of the T count; all of them unless given. 0 leaves a
        sequence as it is, with meaningless logits.
      attention_mask: instead, [batch, T] with 1 where a token counts, as tokenizers give it; padding
        may stand before a sequence, which is then shifted, or after it.
      plan: a `Partitioning`; a `Plan`, whose best option is taken; an `Option`; or its words, such as
        "WS 2D, heads". The planner's choice for a prefill of this size unless given.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`.
      chip: for which the default plan and schedules are chosen, itself or its name; by default that
        of the mesh.

    Returns:
      logits [batch, stored vocab], sharded over the vocabulary, after each sequence's last token, in
      float32 or wider, -inf for tokens that only pad it; and the cache.

    Raises:
      ValueError: in words, before anything runs, for sizes or tokens that do not fit. Inside a jit,
        what depends on values cannot be seen.
    """
    config = checks.as_given(config, mesh, params)
    checks.check_cache(cache, mesh)
    tokens, lengths, _ = right_padded(tokens, lengths, attention_mask)
    batch, length = tokens.shape
    reads, holder = checks.has_past(cache), None
    if plan is None and reads:
        plan = default_prefill(config, mesh, batch, length, cache.max_length, chip=chip)
    elif plan is None:
        plan = default_reader(config, mesh, batch, length, cache.max_length, chip=chip)
        decoder = default_decode(config, mesh, batch, cache.max_length, chip=chip)
        holder = Program.of(config, mesh, decoder, schedule, params, chip)
    past = cache.max_length if reads else 0
    load = load_of(params, batch, length, past, cache.k.values.dtype)
    program = Program.of(config, mesh, plan, schedule, params, chip, load)
    tokens, counts = checks.check_step(program, cache, tokens, lengths)
    return extender(program, holder)(params, cache, tokens, counts, reads=reads)


def decode_step(
    config: ModelConfig | str,
    mesh: MeshLike,
    params: Params,
    cache: Cache,
    tokens: Tokens,
    *,
    plan: PlanLike | None = None,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> tuple[jax.Array, Cache]:
    """Appends one token to each sequence.

    Args:
      tokens: [batch] integers, or [batch, 1].
      plan: the default one for decoding unless given.
      config, mesh, params, cache, schedule, chip: as `prefill`; the cache is donated.

    Returns:
      As `prefill`.

    Raises:
      ValueError: as `prefill`; also for a full cache, whose lengths are read back to see it.
    """
    config = checks.as_given(config, mesh, params)
    checks.check_cache(cache, mesh)
    tokens = as_next_tokens(tokens)
    if plan is None:
        plan = default_decode(config, mesh, len(tokens), cache.max_length, chip=chip)
    load = load_of(params, len(tokens), 1, cache.max_length, cache.k.values.dtype)
    program = Program.of(config, mesh, plan, schedule, params, chip, load)
    tokens, counts = checks.check_step(program, cache, tokens[:, None], None)
    return extender(program)(params, cache, tokens, counts, reads=True)


@functools.lru_cache(maxsize=256)
def extender(program: Program, holder: Program | None = None) -> Wrapped:
    """The jitted step: (params, cache, tokens [batch, T], counts [batch], reads=...).

    `reads` says whether there can be anything in the cache but a prefix. The cache is donated. It is
    sharded for `holder`, if that is given and nothing is in it; see `read`.
    """
    apart = holder is not None and holder.placement.batch_axes != program.placement.batch_axes
    keeps = holder if holder is not None and apart else program

    def run(
        params: Params, cache: Cache, tokens: jax.Array, counts: jax.Array, *, reads: bool
    ) -> tuple[jax.Array, Cache]:
        given, cache = cache, keeps.padded_cache(cache)
        specs = keeps.cache_specs(cache)
        logits, cache = program.shard_map(
            functools.partial(extend, program, reads=True)
            if reads
            else functools.partial(read, program, keeps),
            (program.param_specs(params), specs, P(), P()),
            (program.logit_spec, specs),
        )(params, cache, tokens, counts)
        # As it came, so that the donated one can be written into.
        return logits, stored_like(cache, given)

    return program.jit(run, static_argnames="reads", donate_argnames="cache")


def read(
    reader: Program,
    holder: Program,
    params: Params,
    cache: Cache,
    tokens: jax.Array,
    counts: jax.Array,
) -> tuple[jax.Array, Cache]:
    """Prompts on local shards, read by one program into the empty cache of another.

    Where that shards the cache otherwise, the prompts' own one is made, and each chip keeps its part.

    Returns:
      As `extend`.

    Raises:
      ValueError: the one's cache does not cover the other's.
    """
    place, other = reader.placement, holder.placement
    check_covers(reader, holder)
    if place.batch_axes == other.batch_axes:
        return extend(reader, params, cache, tokens, counts, reads=False)
    batch, length = tokens.shape
    own = empty_cache(
        reader.config,
        batch,
        cache.max_length,
        cache.k.values.dtype,
        int8=cache.k.scale is not None,
        prefix=cache.prefix,
        kv_heads=cache.k.values.shape[2],
        stored_batch=reader.padded_batch(batch),
        filled=length,
    )
    room = cache.prefix_length + cache.max_length
    logits, own = extend(reader, params, own, tokens, counts, reads=False, room=room)
    own = with_stored_batch(own, cache.stored_batch * ax.size(other.batch_axes))
    read_ = jax.tree.map(lambda x: ax.own_block(x, other.batch_axes, 1), own.stores)
    stores = [
        (begin(k, new_k), begin(v, new_v))
        for (k, v), (new_k, new_v) in zip(cache.stores, read_, strict=True)
    ]
    return logits, dataclasses.replace(cache.with_stores(stores), lengths=own.lengths)


def check_covers(reader: Program, holder: Program) -> None:
    """Refuses plans of which the one does not leave what the other's cache keeps.

    Raises:
      ValueError: it does not.
    """
    one, other = reader.placement, holder.placement
    if not one.covers(other):
        raise ValueError(
            f"plan {holder.plan} shards the cache's batch over {other.batch_axes} and its heads "
            f"over {other.kv_axes}, but prefill_plan {reader.plan} over {one.batch_axes} and "
            f"{one.kv_axes}; choose attention layouts that agree, or one for prefill that does not "
            "shard the batch, or call prefill, layouts.move_cache and decode_step"
        )


def extend(
    program: Program,
    params: Params,
    cache: Cache,
    tokens: jax.Array,
    counts: jax.Array,
    *,
    reads: bool,
    targets: jax.Array | None = None,
    room: int | None = None,
) -> tuple[jax.Array, Cache]:
    """One step on local shards: reads `counts` of the tokens [batch, T] into each sequence.

    It is padded here: to as many sequences as the cache stores, which have no positions and read none,
    and to as many positions as the layouts want, which do not count. `room` is how many positions the
    sequences may come to have; that of the cache unless given.

    Returns:
      logits [batch, vocab shard] after each sequence's last token; or, where `targets` [batch, T] are
      given, the log-probability of each of them after the token in its place, [batch, T]; and the
      cache.
    """
    layout, sizes = program.plan.feedforward, program.sizes
    room = cache.prefix_length + cache.max_length if room is None else room
    config = program.config.for_room(room)
    dtype = activation_dtype(params)
    params = standing_for(params, dtype)
    batch, new = tokens.shape
    more = cache.stored_batch * ax.size(program.placement.batch_axes) - batch
    tokens = jnp.pad(tokens, ((0, more), (0, program.padded_length(new) - new)))
    own_counts, counts = counts, jnp.pad(counts, (0, more))
    stores, period = cache_stores(config, cache.max_length), len(config.kinds)
    held = [store_of([store.places for store in stores], place) for place in range(period)]
    cases = [
        LayerSizes(
            config=config,
            layout=layout,
            placement=program.placement,
            schedule=program.schedule,
            batch=tokens.shape[0],
            new=tokens.shape[1],
            keys=cache.stores[store][0] if reads else None,
            activation_bytes=dtype.itemsize,
            sizes=sizes,
            chip=traced_chip(),
            window=kind.window,
        )
        for store, kind in zip(held, config.kinds, strict=True)
    ]
    blocks = params["blocks"]
    # Stacked layers are alike but for their attention; of the others, each may have weights of its
    # own kind.
    layers = [blocks] * period if isinstance(blocks, Mapping) else blocks
    schedules = [
        block_schedules(cases[layer % period], weights) for layer, weights in enumerate(layers)
    ]
    lengths = jnp.pad(cache.lengths, (0, more))
    step = make_step(
        config=config,
        feedforward=layout,
        placement=program.placement,
        schedules=schedules[0],
        lengths=lengths,
        new=tokens.shape[1],
        prefix_length=cache.prefix_length,
        dtype=dtype,
        sizes=sizes,
    )
    with jax.named_scope("embed"):
        # Padding is read as zeros, so that whatever token it is, it leaves no NaN among the values
        # of its sequence.
        counted = jnp.arange(tokens.shape[1], dtype=jnp.int32) < counts[:, None]
        tokens = jnp.where(counted, tokens, -1)
        if config.experts is not None and tokens.shape[1] > 1:
            step = dataclasses.replace(step, counted=own_rows(counted, layout))
        learned = params.get("positions")
        positions = None if learned is None else (cache.prefix_length + lengths, learned)
        x = embed(tokens, params["embedding"], config, layout, dtype, program.schedule, positions)
        if config.embedding_norm:
            x = norm_of(x, params["embedding_norm"], step)
    steps = [
        dataclasses.replace(
            step,
            schedules=schedules[layer % len(schedules)],
            place=layer % period,
            rolls=stores[held[layer % period]].rolls,
        )
        for layer in range(config.layers)
    ]
    loop = append_layers if reads else fill_layers
    blocks = vectors_cut(params["blocks"], step)
    x, filled = loop(x, blocks, cache, counts, steps, copied=program.copies_layers)
    if targets is None:
        with jax.named_scope("unembed"):
            last = last_rows(x, counts, layout, program.schedule)
            made = logits_of(last, params, step)
    else:
        with jax.named_scope("score"):
            padded = jnp.pad(targets, ((0, more), (0, tokens.shape[1] - new)))
            made = log_probabilities(x, padded, params, step)[:, :new]
    cache = cache.with_stores(filled)
    cache = dataclasses.replace(cache, lengths=cache.lengths + own_counts)
    return made[:batch], cache
