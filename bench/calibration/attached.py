"""Time the dots of a calibration on the attached device."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

import collective_einsum as ce
from bench.calibration.dots import Dot
from bench.calibration.programs import LAYERS
from collective_einsum.chips import (
    TPU_7X,
    TPU_V4,
    TPU_V5E,
    TPU_V5P,
    TPU_V6E,
    Chip,
    DotObservation,
    as_chip,
)

_TPUS = (TPU_V4, TPU_V5P, TPU_V5E, TPU_V6E, TPU_7X)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """How calls are timed.

    Attributes:
      least_seconds: a call repeats its loop until it takes so long, so that its dispatch, some tenths
        of a millisecond, does not count.
      repetitions: calls whose median counts.
      now: the time, in seconds.
    """

    least_seconds: float = 0.1
    repetitions: int = 5
    now: Callable[[], float] = time.perf_counter

    def seconds(self, call: Callable[[], jax.Array]) -> float:
        """Seconds of one call until its result is there."""
        start = self.now()
        call().block_until_ready()
        return self.now() - start

    def median(self, call: Callable[[], jax.Array]) -> float:
        """The median of the seconds of `repetitions` calls."""
        return statistics.median(self.seconds(call) for _ in range(self.repetitions))


def device() -> tuple[Chip, Any]:
    """The first attached device and its chip.

    Raises:
      ValueError: it is no TPU that is known.
    """
    # `jax.Device` is a variable to type checkers, not a type.
    found = jax.devices()[0]
    try:
        chip = as_chip(found.device_kind) if found.platform == "tpu" else None
    except ValueError:
        chip = None
    if chip is None:
        known = ", ".join(one.name for one in _TPUS)
        raise ValueError(
            f"--target attached times dots on a TPU that is known ({known}); jax's first device here "
            f"is {found.device_kind!r} of platform {found.platform!r}. Run it on such a TPU; "
            "--target v6e:2x2 compiles for one that is not there; docs/chips.md makes a chip known"
        )
    return chip, found


def measure_all(
    asked: Sequence[Dot], chip: Chip, device: Any, watch: Stopwatch | None = None
) -> Iterator[tuple[int, DotObservation]]:
    """Times dots on a device, a chip of this kind; yields their places and observations.

    Raises ValueError as `measure` does.
    """
    for place, dot in enumerate(asked):
        yield place, measure(dot, chip, device, watch or Stopwatch())


def measure(dot: Dot, chip: Chip, device: Any, watch: Stopwatch) -> DotObservation:
    """Times a dot on a device, a chip of this kind.

    The seconds are those of a loop of dots over a stack of weights less those of the same loop without
    the dots, each repeated inside one program. Both are compiled, and run once, before they are timed.

    Raises:
      ValueError: the loop with the dots took no longer than the one without.
    """
    x, stack = (
        jax.device_put(_drawn(key, shape), device)
        for key, shape in zip(jax.random.split(jax.random.key(0)), dot.operands, strict=True)
    )
    first = jax.device_put(dot.first, device)
    with_dots = functools.partial(ce.jit(functools.partial(_with_dots, dot)), x, first, stack)
    beside = first if dot.adds else x
    without = functools.partial(ce.jit(functools.partial(_without_dots, dot)), x, beside)
    without(1).block_until_ready()
    rounds = _rounds(with_dots, watch)
    times = [watch.median(functools.partial(call, rounds)) for call in (with_dots, without)]
    seconds = (times[0] - times[1]) / (rounds * LAYERS)
    if seconds <= 0:
        raise ValueError(
            f"the loop with the dots of {dot} took {times[0]:.3g} s, the one without {times[1]:.3g} s; "
            "run it again when nothing else uses the device"
        )
    cycles = max(1, round(seconds * chip.clock_hz))
    return DotObservation(**vars(dot), cycles=cycles, source="measured")


def _with_dots(dot: Dot, x: jax.Array, y: jax.Array, stack: jax.Array, rounds: int) -> jax.Array:
    return lax.fori_loop(0, rounds, lambda _, carry: dot.loop(carry, stack), (x, y))[1]


def _without_dots(dot: Dot, x: jax.Array, y: jax.Array, rounds: int) -> jax.Array:
    return lax.fori_loop(0, rounds, lambda _, carry: dot.loop_without(carry), (x, y))[1]


def _rounds(call: Callable[[int], jax.Array], watch: Stopwatch) -> int:
    """How often the call repeats its loop to take `least_seconds`."""
    call(1).block_until_ready()
    rounds = 1
    while (seconds := watch.seconds(functools.partial(call, rounds))) < watch.least_seconds:
        # A short call is mostly dispatch, so it says little about a long one.
        wanted = math.ceil(1.1 * rounds * watch.least_seconds / max(seconds, 1e-9))
        rounds = max(2 * rounds, min(wanted, 10 * rounds))
    return rounds


def _drawn(key: jax.Array, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Random numbers: how much power a device draws, and so its clock, depends on them."""
    if jnp.issubdtype(shape.dtype, jnp.integer):
        return jax.random.randint(key, shape.shape, -127, 128, shape.dtype)
    return jax.random.normal(key, shape.shape, jnp.bfloat16).astype(shape.dtype)
