"""Collectives in progress, which move one hop each while something else is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from ..rings.steps import Steps, together


class Key(NamedTuple):
    """Names a collective; those in progress move in the order of their keys.

    Attributes:
      kind: "gather" of an operand or "scatter" of a result.
      chunk: the chunk of the schedule.
      result: of several results, the one that is scattered; 0 for a gather.
    """

    kind: Literal["gather", "scatter"]
    chunk: int
    result: int = 0


class InFlight:
    """Collectives in progress, and the results of those that have ended.

    Attributes:
      done: the results that have not been taken out.
    """

    def __init__(self, *, barriers: bool) -> None:
        """No collective yet; `barriers` says whether a hop must arrive before the next one departs."""
        self.done: dict[Key, Any] = {}
        self._barriers = barriers
        self._running: dict[Key, tuple[Steps, Any]] = {}

    def __bool__(self) -> bool:
        """Whether any collective is in progress."""
        return bool(self._running)

    def start(self, key: Key, steps: Steps) -> None:
        """Starts a collective: its first hop departs."""
        self._step(key, steps, None)

    def advance(self, value: Any = None) -> Any:
        """One hop of everything in progress, overlapped with the computation of `value`.

        Returns:
          `value`, which with barriers is not usable before the hop has arrived.
        """
        keys = sorted(self._running)
        states = [self._running[key][1] for key in keys]
        # No barrier in async mode: XLA:TPU would wait for the collective before it starts the dot.
        if self._barriers and states:
            states, value = together(states, value)
        for key, state in zip(keys, states, strict=True):
            self._step(key, self._running[key][0], state)
        return value

    def finish(self) -> None:
        """Runs everything in progress to its end."""
        while self._running:
            self.advance()

    def _step(self, key: Key, steps: Steps, state: Any) -> None:
        try:
            self._running[key] = (steps, steps.send(state))
        except StopIteration as stop:
            self._running.pop(key, None)
            self.done[key] = stop.value


class GatheredAhead:
    """The chunks of an operand, each gathered while the chunk before is computed with."""

    def __init__(self, in_flight: InFlight, gathers: Sequence[Steps]) -> None:
        """Starts none of the `gathers`, one for each chunk."""
        self._in_flight = in_flight
        self._gathers = gathers
        self._started = 0

    def take(self, chunk: int) -> Any:
        """The gathered chunk; waits for it, and then starts the next one."""
        key = Key("gather", chunk)
        while key not in self._in_flight.done:
            if self._started <= chunk:
                self._start_next()
            if key not in self._in_flight.done and self._in_flight:
                self._in_flight.advance()
        if self._started < len(self._gathers):
            self._start_next()
        return self._in_flight.done.pop(key)

    def _start_next(self) -> None:
        self._in_flight.start(Key("gather", self._started), self._gathers[self._started])
        self._started += 1
