"""The ruler's prediction for every record."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

from bench.decoder_suite.steps import step
from bench.sources import SOURCES
from bench.truth import links, memory, models
from bench.truth.programs import Program, Step, axis_names
from bench.truth.records import Record
from collective_einsum.ruler import bundles
from collective_einsum.ruler.compile import (
    Cache,
    in_processes,
    program_key,
    source_name,
    target,
)
from collective_einsum.ruler.replay import replay


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A record and its prediction.

    Attributes:
      record: what was measured.
      measured_seconds: the measured seconds of one run.
      predicted_seconds: the predicted ones; None where nothing is predicted.
      refused: why nothing is.
    """

    record: Record
    measured_seconds: float
    predicted_seconds: float | None
    refused: str = ""

    @property
    def residual(self) -> float | None:
        """Predicted / measured - 1; None where nothing is predicted."""
        if self.predicted_seconds is None:
            return None
        return self.predicted_seconds / self.measured_seconds - 1

    @property
    def compared(self) -> bool:
        """Whether the residual counts: something is predicted, and was measured on the device."""
        return self.predicted_seconds is not None and not self.record.upper_bound


def records(full: bool) -> list[Record]:
    """The records of the quick table, or all."""
    every = [*links.records(), *memory.records(), *models.records(), *models.paper_records()]
    return [record for record in every if full or record.quick]


def predict_all(
    asked: Sequence[Record], cache_directory: str | os.PathLike[str], workers: int
) -> Iterator[tuple[int, Outcome]]:
    """Predicts each record in worker processes; yields places and outcomes as they finish.

    Those by bundles are compiled in processes that count them.
    """
    arguments = [(record, os.fspath(cache_directory)) for record in asked]
    counted = [record.bundles for record in asked]
    yield from in_processes(_predict, arguments, workers, apart=counted)


def _predict(record: Record, cache_directory: str | os.PathLike[str]) -> Outcome:
    """`predict`, in a process that counts the bundles of what it compiles, if the record asks for it."""
    if record.bundles:
        bundles.start()
    return predict(record, cache_directory)


def predict(record: Record, cache_directory: str | os.PathLike[str]) -> Outcome:
    """Compiles and replays the program of a record, or takes what the cache has of it.

    Raises ModuleNotFoundError if libtpu is not installed.
    """
    measured = record.measured_seconds
    try:
        target(record.target)
    except ValueError as error:
        # The ruler does not know the chip.
        return Outcome(
            record=record, measured_seconds=measured, predicted_seconds=None, refused=str(error)
        )
    if isinstance(record.program, Step):
        seconds, refused = _step_seconds(record.program, record.target, cache_directory)
        return Outcome(
            record=record,
            measured_seconds=measured,
            predicted_seconds=None if refused else seconds,
            refused=refused,
        )
    seconds = _operation_seconds(record, record.program, Cache(cache_directory))
    return Outcome(record=record, measured_seconds=measured, predicted_seconds=seconds)


def _step_seconds(
    program: Step, target_name: str, cache_directory: str | os.PathLike[str]
) -> tuple[float, str]:
    """Predicted seconds of a step; and why there are none, if so."""
    row = step(program.phase, target_name, cache_directory)
    return row.layers_seconds if program.layers_only else row.step_seconds, row.refused


def _operation_seconds(record: Record, program: Program, cache: Cache) -> float:
    """Predicted seconds of one run of a program of one operation."""
    name = source_name(SOURCES, record.target, program, record.options) + bundles.mark()
    kept = cache.load_row(name)
    if kept is not None:
        return float(kept["seconds"])
    slice_ = target(record.target)
    mesh = slice_.mesh(program.sides or (len(slice_.devices),), axis_names(program.sides))
    lowered, options = program.lower(mesh), dict(record.options)
    key = program_key(lowered, record.target, options)
    compiled = cache.compiled(key, lambda: slice_.compile(lowered, compiler_options=options))
    seconds = program.seconds(replay(compiled.text, mesh))
    cache.store_row(name, {"seconds": seconds})
    return seconds
