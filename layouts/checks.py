"""What a step refuses before it runs, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .axes import check_mesh
from .cache import Cache
from .config import ModelConfig
from .params import check_params
from .partitioning import check_batch as check_batch
from .partitioning import check_model
from .rows import check_positions as check_positions

if TYPE_CHECKING:
    from .program import Program


def check_weights(weights: str, words: Sequence[str]) -> None:
    """Refuses an unknown kind of weights.

    Raises:
      ValueError: it is none of `words`.
    """
    if weights not in words:
        raise ValueError(f"weights={weights!r} must be one of {', '.join(map(repr, words))}")


def check_mesh_for(config: ModelConfig, mesh: Any) -> None:
    """Refuses a mesh that cannot hold the model under any layout.

    Raises:
      ValueError: other axes, or sizes that do not divide.
    """
    check_model(config, check_mesh(mesh))


def check_prefix(cache: Cache) -> None:
    """Refuses a cache that is not one whole sequence.

    Raises:
      ValueError: several sequences, room left, or a prefix of its own.
    """
    if cache.batch != 1 or cache.prefix is not None:
        raise ValueError(
            f"a shared prefix is one sequence without a prefix of its own, got a cache of "
            f"{cache.batch} with a prefix of {cache.prefix_length}; prefill a cache of batch 1"
        )
    length = values_of(cache.lengths)
    if length is not None and length.tolist() != [cache.max_length]:
        raise ValueError(
            f"a shared prefix must fill its cache, but it has {length.tolist()[0]} of "
            f"{cache.max_length} positions; make that cache with max_length={int(length.max())}"
        )


def check_step(
    program: Program, params: Any, cache: Cache, tokens: Any, counts: Any
) -> tuple[Any, Any]:
    """Refuses a step whose arrays do not fit the model, the mesh, the layouts or each other.

    Args:
      tokens: [batch, T].
      counts: [batch], or None for all of them.

    Returns:
      tokens and counts as int32 arrays.

    Raises:
      ValueError: in words.
    """
    config = program.config
    check_params(params, config)
    shape = tuple(jnp.shape(tokens))
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"tokens of shape {shape} must be [batch, length], neither of them 0")
    batch, length = shape
    check_batch(batch, config, program.mesh, program.plan)
    check_positions(length, program.plan.feedforward, check_mesh(program.mesh))
    _check_cache(cache, config, batch, length)
    tokens = _integers(tokens, "tokens")
    counts = np.full((batch,), length, np.int32) if counts is None else counts
    counts = _integers(counts, "lengths")
    if counts.shape != (batch,):
        raise ValueError(f"lengths of shape {counts.shape} must be ({batch},), one per sequence")
    _check_values(config, cache, tokens, counts, length)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(counts, jnp.int32)


def _check_cache(cache: Cache, config: ModelConfig, batch: int, length: int) -> None:
    expected = (config.layers, batch, config.stored_kv_heads, cache.max_length, config.d_head)
    for name, entries in (("k", cache.k), ("v", cache.v)):
        if tuple(entries.values.shape) != expected:
            raise ValueError(
                f"cache.{name} has shape {tuple(entries.values.shape)}, but {config.name} with "
                f"{batch} sequences needs {expected} (layers, batch, key-value heads, positions, "
                "d_head); make it with layouts.init_cache"
            )
    if length > cache.max_length:
        raise ValueError(
            f"{length} tokens do not fit a cache of {cache.max_length} positions; make it with "
            f"max_length={length} or more, or read fewer tokens at a time"
        )


def _check_values(config: ModelConfig, cache: Cache, tokens: Any, counts: Any, length: int) -> None:
    ids, new, have = values_of(tokens), values_of(counts), values_of(cache.lengths)
    if ids is not None and (ids.min() < 0 or ids.max() >= config.vocab):
        bad = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise ValueError(
            f"token {bad} is not in the vocabulary of {config.name}, 0 to {config.vocab - 1}"
        )
    if new is not None and (new.min() < 0 or new.max() > length):
        raise ValueError(
            f"lengths must be between 0 and {length}, the length of tokens, got {new.tolist()}"
        )
    if new is None or have is None:
        return
    after = have + new
    if after.max() > cache.max_length:
        worst = int(after.argmax())
        raise ValueError(
            f"sequence {worst} has {int(have[worst])} positions in the cache and "
            f"{int(new[worst])} to come, but there is room for {cache.max_length}; make the cache "
            f"with max_length={int(after[worst])} or more"
        )


def has_past(cache: Cache) -> bool:
    """Whether any sequence may have positions in the cache."""
    have = values_of(cache.lengths)
    return have is None or bool(have.any())


def values_of(x: Any) -> np.ndarray | None:
    """The numbers of an array, if they can be seen here: not while tracing."""
    if isinstance(x, Tracer | jax.ShapeDtypeStruct):
        return None
    if isinstance(x, jax.Array) and not x.is_fully_addressable and not x.is_fully_replicated:
        return None
    return np.asarray(x)


def _integers(x: Any, name: str) -> Any:
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{name} must be integers, got {x.dtype}")
    return x


def check_prompts(counts: Any) -> None:
    """Refuses empty prompts.

    Raises:
      ValueError: there is one.
    """
    have = values_of(counts)
    if have is not None and have.min() < 1:
        raise ValueError(
            f"prompt {int(have.argmin())} has length {int(have.min())}; a prompt needs a token, "
            "such as that which begins a text"
        )
