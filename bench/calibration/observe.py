"""Compile dots for a slice and observe them, in worker processes and with a cache."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence

from bench.calibration.dots import Dot
from collective_einsum.chips import Chip, DotObservation, Observations
from collective_einsum.ruler import bundles
from collective_einsum.ruler.compile import (
    Cache,
    Target,
    in_processes,
    program_key,
    target,
    versions,
)


def observe_all(
    asked: Sequence[Dot], name: str, cache_directory: str | os.PathLike[str], workers: int = 2
) -> Iterator[tuple[int, DotObservation]]:
    """Observes dots on a slice by name; yields places and observations as they finish."""
    arguments = [(dot, name, os.fspath(cache_directory)) for dot in asked]
    narrow = [dot.is_narrow for dot in asked]
    yield from in_processes(observe, arguments, workers, apart=narrow)


def observe(dot: Dot, name: str, cache_directory: str | os.PathLike[str]) -> DotObservation:
    """Compiles a dot for a slice, with its bundles where it is narrow, or takes it from the cache.

    Raises ValueError if there is no such slice, ModuleNotFoundError if libtpu is not installed.
    """
    if dot.is_narrow:
        bundles.start()
    slice_, cache = _target(name), Cache(cache_directory)
    assert slice_.chip is not None
    lowered = dot.lower(slice_)
    program = cache.compiled(program_key(lowered, name, {}), lowered.compile)
    return dot.observed(slice_.chip, program.text)


def observations(chip: Chip, target_name: str, seen: Sequence[DotObservation]) -> Observations:
    """What the file of a chip holds, whose dots were compiled for a target, or timed on it.

    Raises ValueError if libtpu is not installed as a package, so that its version is not known.
    """
    numbers = versions()
    if numbers["libtpu"] is None:
        raise ValueError(
            "a file of observations has the version of libtpu, which is not installed as a package; "
            "python -m pip install libtpu"
        )
    return Observations(
        chip=chip.name,
        compiler=f"libtpu {numbers['libtpu']}",
        jax=str(numbers["jax"]),
        command=f"python -m bench calibrate --target {target_name}",
        clock_hz=chip.clock_hz,
        dots=tuple(seen),
    )


@functools.cache
def _target(name: str) -> Target:
    return target(name)
