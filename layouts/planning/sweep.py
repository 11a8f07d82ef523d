"""Latency against cost over batches and numbers of chips, and what is best on both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from collective_einsum.text import Shown

from ..arguments import as_sizes
from ..models.config import ModelConfig
from ..models.named_models import as_config
from .plan import Option, Plan, print_options
from .search import BATCHES, CHIPS, plan


class Options(Shown, tuple[Option, ...]):
    """Some options; prints as a table."""

    __slots__ = ()

    def __repr__(self) -> str:
        ends = f": {self[0]!r} to {self[-1]!r}" if self else ""
        return f"Options({len(self)}{ends})"

    def __str__(self) -> str:
        return print_options(self)


def sweep(
    config: ModelConfig | str,
    *,
    phase: str,
    batches: int | Sequence[int] = BATCHES,
    chips: int | Sequence[int] = CHIPS,
    **asked: Any,
) -> Options:
    """The fastest layouts for each batch on each number of chips, where any will do (figure 1).

    Args:
      config: the model.
      phase: "decode" or "prefill".
      batches, chips: what to go through.
      asked: as `plan` takes it: chip, context, length, weights, cache, max_seconds, overlap.

    Returns:
      A tuple of them, which prints as a table.

    Raises:
      ValueError: as `plan`.
    """
    fastest: list[Option] = []
    for given, instead in (("batch", "batches="), ("mesh_shape", "chips=, or call layouts.plan")):
        if given in asked:
            raise ValueError(
                f"layouts.sweep goes through batches and chips and takes no {given}=; give {instead}"
            )
    config = as_config(config)
    sizes = as_sizes("batches", batches)
    for count in as_sizes("chips", chips):
        for batch in sizes:
            options = plan(config, phase=phase, batch=batch, chips=count, **asked).feasible
            fastest += options[:1]
    return Options(fastest)


def pareto(options: Sequence[Option] | Plan) -> Options:
    """The points that no other beats both in seconds and in chip-seconds a token, the fastest first.

    Args:
      options: those of a `Plan`, or the plan itself; those that cannot be are left out.

    Raises:
      ValueError: they are something else.
    """
    given = options.options if isinstance(options, Plan) else options
    if not isinstance(given, Sequence) or not all(isinstance(option, Option) for option in given):
        raise ValueError(
            "options must be a sequence of Option, such as layouts.sweep returns, or a Plan, got "
            f"{type(options).__name__}"
        )
    unbeaten: list[Option] = []
    least = float("inf")
    for option in sorted((option for option in given if not option.excluded), key=_point):
        _, spent = _point(option)
        if spent < least:
            unbeaten.append(option)
            least = spent
    return Options(unbeaten)


def _point(option: Option) -> tuple[float, float]:
    cost = option.cost
    assert cost is not None
    return cost.seconds, cost.chip_seconds_per_token
