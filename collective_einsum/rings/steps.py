"""Collectives as generators of supersteps, which others can overlap with compute."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from jax import lax

# A collective in progress. At the end of each superstep it yields a pytree: what it has in flight and
# what it has computed. It wants the same back, behind a barrier, and returns its result.
Steps = Generator[Any, Any, Any]


def together(*values: Any) -> tuple[Any, ...]:
    """The pytrees `values`, none of them usable before all are computed."""
    return lax.optimization_barrier(values)


def finish(steps: Steps, state: Any = None) -> Any:
    """Runs a collective to its end with nothing to overlap; `state` is what it yielded last, if it has
    been started."""
    while True:
        try:
            state = steps.send(state)
        except StopIteration as stop:
            return stop.value
        (state,) = together(state)
