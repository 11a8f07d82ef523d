"""Latency against cost over batches and numbers of chips, and what is best on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import ModelConfig
from .planner import BATCHES, CHIPS, Option, plan


def sweep(
    config: ModelConfig,
    *,
    phase: str,
    batches: Sequence[int] = BATCHES,
    chips: Sequence[int] = CHIPS,
    **asked: Any,
) -> tuple[Option, ...]:
    """The fastest layouts for each batch on each number of chips, where any will do (figure 1).

    Args:
      config: the model.
      phase: "decode" or "prefill".
      batches, chips: what to go through.
      asked: as `plan` takes it: chip, context, length, weights, cache, max_seconds, overlap.

    Raises:
      ValueError: as `plan`.
    """
    found: list[Option] = []
    for count in chips:
        for batch in batches:
            options = plan(config, phase=phase, batch=batch, chips=count, **asked).feasible
            found += options[:1]
    return tuple(found)


def pareto(options: Sequence[Option]) -> tuple[Option, ...]:
    """Those that no other beats both in seconds and in chip-seconds a token, the fastest first."""
    found: list[Option] = []
    least = float("inf")
    for option in sorted(options, key=_point):
        _, spent = _point(option)
        if spent < least:
            found.append(option)
            least = spent
    return tuple(found)


def _point(option: Option) -> tuple[float, float]:
    cost = option.cost
    assert cost is not None
    return cost.seconds, cost.chip_seconds_per_token
