"""Log-probabilities of texts: for perplexity, and to compare continuations."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.stages import Wrapped
from jax.typing import ArrayLike

from collective_einsum.chips import Chip

from ..arguments import Tokens, as_flag, as_size
from ..layers.kv_cache import empty_cache, stored_like
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import ScheduleLike
from ..models.cache import Cache
from ..models.config import ModelConfig
from ..models.params import Params, activation_dtype
from ..partitionings.partitioning import PlanLike
from ..planning.defaults import default_scorer
from . import step_checks as checks
from .attention_masks import Mask, right_padded
from .compiled_step import Program, load_of
from .decoder import extend
from .initialize import init_cache


def score(
    config: ModelConfig | str,
    mesh: MeshLike,
    params: Params,
    tokens: Tokens,
    *,
    lengths: ArrayLike | Sequence[int] | None = None,
    attention_mask: Mask | None = None,
    chunk: int = 512,
    plan: PlanLike | None = None,
    int8_cache: bool = False,
    schedule: ScheduleLike = "auto",
    chip: Chip | str | None = None,
) -> jax.Array:
    """The log-probability of each token given those before it.

    The perplexity of a text is exp(-mean) of them, and the log-likelihood of a continuation their sum
    over its tokens. Each chip has the logits of its own shard of the vocabulary, for a slice of a chunk
    at a time; logits are never gathered.

    Args:
      config, mesh, params: as `prefill`.
      tokens: [batch, T] integers.
      lengths: [batch] integers, how many of the T count, which then come first; T unless given.
      attention_mask: instead, [batch, T] with 1 where a token counts; padding may stand on either side.
      chunk: positions of each sequence that are read at a time, at most; a cache keeps those before.
      plan: as `prefill`; the planner's choice for prompts as long as a chunk unless given.
      int8_cache: store keys and values as int8.
      schedule, chip: as `prefill`.

    Returns:
      [batch, T] natural logarithms in float32 or wider, the same on all chips: at the place of each
      token. 0 for the first token of a sequence, which nothing precedes, and for padding.

    Raises:
      ValueError: in words, before anything runs, for sizes or tokens that do not fit.
    """
    config = checks.as_given(config, mesh, params)
    tokens, lengths, starts = right_padded(tokens, lengths, attention_mask)
    batch, length = tokens.shape
    chunk, int8_cache = as_size("chunk", chunk), as_flag("int8_cache", int8_cache)
    # The last token has no successor to score. Chunks are as long as each other, as far as can be.
    chunks = max(1, -(-(length - 1) // chunk))
    chunk = max(1, -(-(length - 1) // chunks))
    if plan is None:
        plan = default_scorer(config, mesh, batch, chunk, chip=chip)
    dtype = activation_dtype(params)
    past = chunks * chunk if chunks > 1 else 0
    load = load_of(params, batch, chunk, past, jnp.int8 if int8_cache else dtype)
    program = Program.of(config, mesh, plan, schedule, params, chip, load)
    shapes = jax.eval_shape(functools.partial(empty_cache, config, batch, length, dtype))
    tokens, counts = checks.check_step(program, shapes, tokens, lengths)
    cache = init_cache(
        config, mesh, batch, chunks * chunk, plan=plan, dtype=dtype, int8=int8_cache, chip=chip
    )
    run, made = scorer(program, chunk), []
    for place in range(chunks):
        start = checks.brought(np.int32(place * chunk), mesh)
        logs, cache = run(params, cache, tokens, counts, start, reads=place > 0)
        made.append(logs)
    return _placed(made, checks.brought(starts, mesh), length)


@functools.lru_cache(maxsize=256)
def scorer(program: Program, chunk: int) -> Wrapped:
    """The jitted step: (params, cache, tokens [batch, T], counts [batch], start, reads=...) to the
    log-probabilities [batch, chunk] of the tokens after `start`, and the cache, which is donated."""

    def run(
        params: Params,
        cache: Cache,
        tokens: jax.Array,
        counts: jax.Array,
        start: jax.Array,
        *,
        reads: bool,
    ) -> tuple[jax.Array, Cache]:
        def local(
            params: Params, cache: Cache, tokens: jax.Array, counts: jax.Array, start: jax.Array
        ) -> tuple[jax.Array, Cache]:
            # Room for a last chunk that is not full, and the token after it.
            padded = jnp.pad(tokens, ((0, 0), (0, chunk)))
            own = lax.dynamic_slice_in_dim(padded, start, chunk + 1, axis=1)
            left = counts - start
            logs, cache = extend(
                program,
                params,
                cache,
                own[:, :-1],
                jnp.clip(left, 0, chunk),
                reads=reads,
                targets=own[:, 1:],
            )
            scored = jnp.arange(1, chunk + 1, dtype=jnp.int32) < left[:, None]
            return jnp.where(scored, logs, 0), cache

        given, cache = cache, program.padded_cache(cache)
        specs = program.cache_specs(cache)
        in_specs = (program.param_specs(params), specs, P(), P(), P())
        logs, cache = program.shard_map(local, in_specs, (P(), specs))(
            params, cache, tokens, counts, start
        )
        return logs, stored_like(cache, given)

    return program.jit(run, static_argnames="reads", donate_argnames="cache")


@functools.partial(jax.jit, static_argnums=2)
def _placed(made: list[jax.Array], starts: jax.Array | None, length: int) -> jax.Array:
    """Log-probabilities of chunks, each that of the next token, at the places of tokens [batch, T]."""
    logs = jnp.pad(jnp.concatenate(made, axis=1), ((0, 0), (1, 0)))[:, :length]
    if starts is None:
        return logs
    order = (jnp.arange(length, dtype=jnp.int32) - starts[:, None]) % length
    return jnp.take_along_axis(logs, order, axis=1)
