"""A step of a decoder from one program: the time of its layers, and of the step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

from bench.decoder_suite.layers import mesh_of, outside_layers, replayed
from bench.decoder_suite.phases import Phase, split
from bench.sources import SOURCES
from collective_einsum.ruler import bundles
from collective_einsum.ruler.compile import Cache, in_processes, source_name


@dataclasses.dataclass(frozen=True)
class StepRow:
    """A phase on a slice, predicted by a replay.

    Attributes:
      phase, target: what the program computes, and the slice it is compiled for.
      layers_seconds: time of the step without its embedding and unembedding.
      parts: seconds of matmuls, attention, exposed communication and the rest, by name.
      step_seconds: time of the step.
      chip_bytes: memory of a chip, by the compiler.
      compile_seconds: measured time of compiling.
      refused: why it cannot be compiled, or does not fit; numbers are 0 then.
    """

    phase: Phase
    target: str
    layers_seconds: float = 0.0
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    step_seconds: float = 0.0
    chip_bytes: int = 0
    compile_seconds: float = 0.0
    refused: str = ""


Task = tuple[Phase, str]


def step(phase: Phase, target_name: str, cache_directory: str | os.PathLike[str]) -> StepRow:
    """Compiles and replays a step, or takes its row from the cache.

    Raises ModuleNotFoundError if libtpu is not installed.
    """
    cache = Cache(cache_directory)
    name = source_name(SOURCES, target_name, phase, "step") + bundles.mark()
    kept = cache.load_row(name)
    if kept is not None:
        return StepRow(**{**kept, "phase": phase})
    row = StepRow(phase, target_name)
    try:
        timeline, program = replayed(phase, mesh_of(target_name, phase.sides), target_name, cache)
    except Exception as error:
        # The compiler raises a runtime error where a program does not fit.
        if not isinstance(error, ValueError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        row = dataclasses.replace(row, refused=str(error).splitlines()[0])
    else:
        step, outside = split(timeline), split(outside_layers(timeline))
        parts = {name: step[name] - outside[name] for name in step}
        row = dataclasses.replace(
            row,
            layers_seconds=sum(parts.values()),
            parts=parts,
            step_seconds=timeline.total_seconds,
            chip_bytes=program.chip_bytes,
            compile_seconds=program.compile_seconds,
        )
    cache.store_row(name, {**dataclasses.asdict(row), "phase": None})
    return row


def _step(
    phase: Phase, target_name: str, cache_directory: str | os.PathLike[str], by_bundles: bool
) -> StepRow:
    """`step`, in a process that counts the bundles of what it compiles, if asked for."""
    if by_bundles:
        bundles.start()
    return step(phase, target_name, cache_directory)


def step_all(
    tasks: Sequence[Task],
    cache_directory: str | os.PathLike[str],
    workers: int = 2,
    *,
    by_bundles: bool = False,
) -> Iterator[tuple[int, StepRow]]:
    """Runs `step` for each task in worker processes, `by_bundles` those with int8 weights or an int8
    cache in processes that count bundles; yields places and rows as they finish."""
    counted = [by_bundles and phase.narrow for phase, _ in tasks]
    folder = os.fspath(cache_directory)
    asked = [(*task, folder, each) for task, each in zip(tasks, counted, strict=True)]
    yield from in_processes(_step, asked, workers, apart=counted)
