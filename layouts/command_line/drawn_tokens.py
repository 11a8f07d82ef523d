"""Generation token by token, so that text can be shown as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from ..decoding import step_checks as checks
from ..decoding.decoder import decode_step, prefill
from ..decoding.initialize import init_cache
from ..mesh.axes import MeshLike
from ..mesh.axis_collectives import check_mesh
from ..mesh.shard_map_entry import on_mesh
from ..models.config import ModelConfig
from ..models.params import Params, activation_dtype
from ..partitionings.param_specs import vocab_axes
from ..partitionings.partitioning import PlanLike
from ..sampling.sampling import Sampling, sample, seed_words
from .tokens import padded_rows


def drawn_tokens(
    config: ModelConfig,
    mesh: MeshLike,
    params: Params,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    seeds: Sequence[int],
    plan: PlanLike | None = None,
    int8_cache: bool = False,
) -> Iterator[np.ndarray]:
    """The tokens that `layouts.generate` draws, as they are drawn.

    Args:
      config, mesh, params, max_new_tokens, sampling, plan, int8_cache: as `layouts.generate`.
      prompts: tokens of each sequence, of any lengths from 1.
      seeds: one for each sequence.

    Yields:
      [batch] int32, the next token of each sequence; also of those that have ended.

    Raises:
      ValueError: as `layouts.generate`.
    """
    tokens, lengths = padded_rows(prompts)
    axes = vocab_axes(config, check_mesh(mesh))

    def draw(
        logits: jax.Array, sampling: Sampling, seeds: jax.Array, positions: jax.Array
    ) -> jax.Array:
        return sample(logits, sampling, seeds=seeds, positions=positions, axes=axes)

    drawer = jax.jit(on_mesh(mesh, draw, (P(None, axes or None), P(), P(), P()), P()))
    settings, words = checks.brought((sampling, seed_words(np.asarray(seeds))), mesh)
    cache = init_cache(
        config,
        mesh,
        len(tokens),
        tokens.shape[1] + max_new_tokens,
        plan=plan,
        dtype=activation_dtype(params),
        int8=int8_cache,
    )
    logits, cache = prefill(config, mesh, params, cache, tokens, lengths=lengths, plan=plan)
    for step in range(max_new_tokens):
        drawn = drawer(logits, settings, words, cache.lengths)
        yield np.asarray(drawn)
        if step + 1 < max_new_tokens:
            logits, cache = decode_step(
                config, mesh, params, cache, drawn.astype(jnp.int32), plan=plan
            )
