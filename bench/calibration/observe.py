"""Compile dots and memory passes for a slice and observe them, in worker processes and with a cache."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence

from bench.calibration.dots import Dot
from bench.calibration.passes import Pass
from collective_einsum.chips import (
    Chip,
    DotObservation,
    Observations,
    PassObservation,
    compiler_options,
)
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
    asked: Sequence[Dot | Pass],
    name: str,
    cache_directory: str | os.PathLike[str],
    workers: int = 2,
) -> Iterator[tuple[int, DotObservation | PassObservation]]:
    """Observes dots and passes on a slice by name; yields places and observations as they finish."""
    arguments = [(one, name, os.fspath(cache_directory)) for one in asked]
    narrow = [one.is_narrow for one in asked]
    yield from in_processes(observe, arguments, workers, apart=narrow)


def observe(
    asked: Dot | Pass, name: str, cache_directory: str | os.PathLike[str]
) -> DotObservation | PassObservation:
    """Compiles a dot, with its bundles where it is narrow, or a pass for a slice, or takes the program
    from the cache.

    Raises ValueError if there is no such slice, ModuleNotFoundError if libtpu is not installed.
    """
    if asked.is_narrow:
        bundles.start()
    slice_, cache = _target(name), Cache(cache_directory)
    assert slice_.chip is not None
    lowered = asked.lower(slice_)
    key = program_key(lowered, name, compiler_options(slice_.chip))
    program = cache.compiled(key, lowered.compile)
    return asked.observed(slice_, program.text)


def observations(
    chip: Chip, target_name: str, seen: Sequence[DotObservation | PassObservation]
) -> Observations:
    """What the file of a chip holds, whose dots were compiled for a target, or timed on it. Passes that
    were not observed are those of the file that was there.

    Raises ValueError if libtpu is not installed as a package, so that its version is not known.
    """
    numbers = versions()
    passes = tuple(one for one in seen if isinstance(one, PassObservation))
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
        dots=tuple(one for one in seen if isinstance(one, DotObservation)),
        passes=passes or (chip.observations.passes if chip.observations else ()),
    )


@functools.cache
def _target(name: str) -> Target:
    return target(name)
