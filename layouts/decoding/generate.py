"""Generation: one program that reads the prompts and draws tokens until every sequence has ended."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence, Set

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped
from jax.typing import ArrayLike

from collective_einsum.chips import Chip

from ..arguments import Tokens, as_flag, as_size, values_of
from ..layers.kv_cache import empty_cache
from ..mesh import axis_collectives as ax
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import ScheduleLike
from ..models.cache import Cache, Prefix
from ..models.config import ModelConfig
from ..models.params import Params, activation_dtype
from ..partitionings.cache_specs import prefix_specs
from ..partitionings.param_specs import vocab_axes
from ..partitionings.partitioning import PlanLike
from ..planning.defaults import default_decode, default_reader
from ..sampling.sampling import (
    Sampling,
    as_sampling,
    check_sampling,
    check_seeds,
    sample,
    seed_words,
)
from . import step_checks as checks
from .attention_masks import Mask, right_padded
from .compiled_step import Program, load_of
from .decoder import check_covers, extend, read

# Step, last tokens, which sequences go on, tokens, how many each sequence drew, and the cache.
State = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, Cache]


def generate(
    config: ModelConfig | str,
    mesh: MeshLike,
    params: Params,
    tokens: Tokens,
    *,
    max_new_tokens: int,
    lengths: ArrayLike | Sequence[int] | None = None,
    attention_mask: Mask | None = None,
    sampling: Sampling | None = None,
    seeds: jax.Array | np.ndarray | None = None,
    end_tokens: int | Iterable[int] = (),
    pad_token: int = 0,
    prefix: Prefix | None = None,
    plan: PlanLike | None = None,
    prefill_plan: PlanLike | None = None,
    int8_cache: bool = False,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Continues prompts, each until it draws an end token or has all that it may have.

    One program, compiled once for these shapes: the prompts are read, and a loop on the devices
    draws tokens until no sequence is left. The tokens of a sequence depend on its own prompt,
    seed and settings only, not on its neighbours in the batch.

    Args:
      config, mesh: as `init`.
      params: as `init` made them.
      tokens: [batch, T] integers, the prompts, padded at the end.
      max_new_tokens: at most so many for each sequence.
      lengths: [batch] integers of at least 1, of the prompts; T unless given.
      attention_mask: instead, [batch, T] with 1 where a token counts; see `prefill`.
      sampling: how to choose a token; greedily unless given.
      seeds: [batch] integers, one for each sequence, of which 64 bits count; 0 unless given.
      end_tokens: a sequence ends with the first of these that it draws; one token, or any number.
      pad_token: stands after the end.
      prefix: what all prompts continue, from `shared_prefix`.
      plan: a `Partitioning` to decode in; the default one unless given.
      prefill_plan: one to read prompts in, which must shard the cache alike, or not its batch; unless
        given, `plan`, or the default one for a prefill if neither is.
      int8_cache: store keys and values as int8.
      schedule: of the collectives, as in `collective_einsum.all_gather_einsum`.
      chip: for which the default plans and schedules are chosen, itself or its name; by default that
        of the mesh.

    Returns:
      new tokens [batch, max_new_tokens] int32, and how many each sequence drew, its end token
      included, [batch] int32; the same on all chips.

    Raises:
      ValueError: in words, before anything runs, for sizes, tokens or settings that do not fit.
    """
    config = checks.as_given(config, mesh, params)
    tokens, lengths, _ = right_padded(tokens, lengths, attention_mask)
    batch, length = tokens.shape
    max_new_tokens = as_size("max_new_tokens", max_new_tokens)
    int8_cache = as_flag("int8_cache", int8_cache)
    checks.check_prefix_of(prefix, config, mesh)
    ends, pad_token = _as_tokens(end_tokens), _as_token(pad_token)
    sampling = as_sampling(sampling)
    check_sampling(sampling, batch)
    seeds = np.zeros((batch,), np.uint32) if seeds is None else seeds
    check_seeds(seeds, batch)
    room = length + max_new_tokens
    checks.check_room(config, room, prefix)
    if plan is None:
        plan = default_decode(config, mesh, batch, room, chip=chip)
        if prefill_plan is None:
            prefill_plan = default_reader(config, mesh, batch, length, room, chip=chip)
    # The decoder's steps, of which there are many, decide the options of all.
    dtype = activation_dtype(params)
    load = load_of(params, batch, 1, room, jnp.int8 if int8_cache else dtype)
    program = Program.of(config, mesh, plan, schedule, params, chip, load)
    reads = load_of(params, batch, length, 0, jnp.int8 if int8_cache else dtype)
    reader = Program.of(config, mesh, prefill_plan or plan, schedule, params, chip, reads)
    check_covers(reader, program)
    for token in (*ends, pad_token):
        if not 0 <= token < config.vocab:
            raise ValueError(
                f"end or pad token {token} is not in the vocabulary of {config.name}, 0 to "
                f"{config.vocab - 1}"
            )
    cache = jax.eval_shape(
        functools.partial(empty_cache, config, batch, room, dtype, int8=int8_cache),
        prefix=prefix,
    )
    tokens, counts = checks.check_step(program, cache, tokens, lengths)
    checks.check_prompts(counts)
    run = generator(program, reader, max_new_tokens, ends, pad_token, int8_cache)
    sampling, seeds = checks.brought((sampling, seed_words(seeds)), mesh)
    return run(params, tokens, counts, sampling, seeds, prefix)


def _as_token(x: object) -> int:
    """The token after the end, as an int.

    Raises:
      ValueError: it is none.
    """
    number = values_of(x)
    if number is None or number.shape or number.dtype.kind not in "iu":
        raise ValueError(f"pad_token={x!r} must be one integer, known before anything is compiled")
    return int(number)


def _as_tokens(given: object) -> tuple[int, ...]:
    """One end token, or any collection of them, in ascending order.

    Raises:
      ValueError: it is neither.
    """
    numbers = values_of(list(given) if isinstance(given, Set) else given)
    if numbers is None or (numbers.size and numbers.dtype.kind not in "iu") or numbers.ndim > 1:
        raise ValueError(
            f"end_tokens={given!r} must be one token, or a sequence of them, known before anything "
            "is compiled"
        )
    return tuple(sorted({int(token) for token in numbers.ravel()}))


@functools.lru_cache(maxsize=256)
def generator(
    decoder: Program,
    reader: Program,
    max_new_tokens: int,
    end_tokens: tuple[int, ...],
    pad_token: int,
    int8_cache: bool,
) -> Wrapped:
    """The jitted function behind `generate`."""

    def run(
        params: Params,
        tokens: jax.Array,
        counts: jax.Array,
        sampling: Sampling,
        seeds: jax.Array,
        prefix: Prefix | None,
    ) -> tuple[jax.Array, jax.Array]:
        body = functools.partial(
            _generate, decoder, reader, max_new_tokens, end_tokens, pad_token, int8_cache
        )
        shared = None
        if prefix is not None:
            shared = prefix_specs(prefix, decoder.placement.kv_axes)
        specs = (decoder.param_specs(params), P(), P(), P(), P(), shared)
        return decoder.shard_map(body, specs, (P(), P()))(
            params, tokens, counts, sampling, seeds, prefix
        )

    return decoder.jit(run)


def _generate(
    decoder: Program,
    reader: Program,
    max_new_tokens: int,
    end_tokens: tuple[int, ...],
    pad_token: int,
    int8_cache: bool,
    params: Params,
    tokens: jax.Array,
    counts: jax.Array,
    sampling: Sampling,
    seeds: jax.Array,
    prefix: Prefix | None,
) -> tuple[jax.Array, jax.Array]:
    """`generate` on local shards."""
    batch, length = tokens.shape
    place = decoder.placement
    cache = empty_cache(
        decoder.config,
        batch,
        length + max_new_tokens,
        activation_dtype(params),
        int8=int8_cache,
        prefix=prefix,
        kv_heads=decoder.config.stored_kv_heads // ax.size(place.kv_axes),
        stored_batch=decoder.padded_batch(batch, reader) // ax.size(place.batch_axes),
    )
    axes = vocab_axes(decoder.config, decoder.sizes)
    ends = jnp.asarray(np.asarray(end_tokens, np.int32))

    def draw(logits: jax.Array, cache: Cache) -> jax.Array:
        positions = cache.prefix_length + cache.lengths
        with jax.named_scope("sample"):
            return sample(logits, sampling, seeds=seeds, positions=positions, axes=axes)

    def put(state: State, drawn: jax.Array) -> State:
        step, _, running, out, drew, cache = state
        kept = jnp.where(running, drawn, pad_token)
        out = lax.dynamic_update_slice_in_dim(out, kept[:, None], step, axis=1)
        drew = drew + running.astype(jnp.int32)
        # The CPU compiler of jax 0.11 crashes on a comparison with no tokens at all.
        running = running & ~jnp.isin(drawn, ends) if end_tokens else running
        return step + 1, kept, running, out, drew, cache

    def goes_on(state: State) -> jax.Array:
        step, _, running, *_ = state
        return (step < max_new_tokens) & jnp.any(running)

    def go_on(state: State) -> State:
        _, last, running, *_, cache = state
        # A sequence that has ended appends nothing.
        logits, cache = extend(
            decoder, params, cache, last[:, None], running.astype(jnp.int32), reads=True
        )
        return put((*state[:-1], cache), draw(logits, cache))

    logits, cache = read(reader, decoder, params, cache, tokens, counts)
    state = (
        jnp.int32(0),
        jnp.zeros((batch,), jnp.int32),
        jnp.ones((batch,), bool),
        jnp.full((batch, max_new_tokens), pad_token, jnp.int32),
        jnp.zeros((batch,), jnp.int32),
        cache,
    )
    state = lax.while_loop(goes_on, go_on, put(state, draw(logits, cache)))
    return state[3], state[4]
