"""The work that a phase asks of each layer, from words and sizes, and as a step is padded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from collective_einsum.text import did_you_mean

from ..arguments import as_size
from ..models.config import ModelConfig
from ..partitionings.padded_sizes import padded_batch, padded_capacity, padded_length
from ..partitionings.partitioning import Partitioning
from .layer_items import Load

PHASES = ("decode", "prefill")


def load(
    phase: str,
    *,
    batch: int,
    context: int | None = None,
    length: int | None = None,
    weights: str = "bf16",
    cache: str = "bf16",
) -> Load:
    """The work that a phase asks of each layer.

    Args:
      phase: "decode", one token for each sequence after `context` positions, or "prefill", prompts
        of `length` tokens on an empty cache.
      batch: sequences.
      context: positions in the cache, for decode.
      length: of the prompts, for prefill.
      weights, cache: "bf16" or "int8".

    Raises:
      ValueError: another word, or a size that is missing or not positive.
    """
    if phase not in PHASES:
        raise ValueError(
            f"phase={phase!r} is neither 'decode' nor 'prefill'{did_you_mean(phase, PHASES)}"
        )
    bytes_of = {"bf16": 2, "int8": 1}
    for argument, word in (("weights", weights), ("cache", cache)):
        if not isinstance(word, str) or word not in bytes_of:
            raise ValueError(
                f"{argument}={word!r} is neither 'bf16' nor 'int8'{did_you_mean(word, bytes_of)}"
            )
    batch = as_size("batch", batch, f"phase={phase!r}")
    name, given = ("context", context) if phase == "decode" else ("length", length)
    given = as_size(name, given, f"phase={phase!r}")
    new, past = (1, given) if phase == "decode" else (given, 0)
    return Load(batch, new, past, bytes_of[weights], bytes_of[cache])


def padded_load(
    load: Load, config: ModelConfig, plan: Partitioning, sizes: Mapping[str, int]
) -> Load:
    """The load that a step computes when it is asked for `load`; as `batch_multiple`."""
    return dataclasses.replace(
        load,
        batch=padded_batch(load.batch, config, plan, sizes),
        new=padded_length(load.new, config, plan, sizes),
        past=padded_capacity(load.past) if load.past else 0,
    )
