"""Compile a case under a schedule, replay it, and keep the result in a row."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence

import jax

from bench.einsum_suite.cases import IN_JIT, Case, mesh_of, schedule_of
from bench.einsum_suite.feedforward_forms import FeedForward
from bench.sources import SOURCES
from collective_einsum import Schedule
from collective_einsum.ops import as_schedule
from collective_einsum.ruler import bundles
from collective_einsum.ruler.compile import (
    Cache,
    Program,
    Target,
    in_processes,
    program_key,
    source_name,
    target,
)
from collective_einsum.ruler.replay import Timeline, replay

AnyCase = Case | FeedForward
Options = Mapping[str, bool | int | str]


@dataclasses.dataclass(frozen=True)
class Row:
    """One case under one schedule, predicted; seconds and bytes are those of one layer.

    Attributes:
      case, rows, weights, target: what the program computes, and the slice it is compiled for.
      schedule: name of the schedule, as asked for.
      program: hash of the program, the same for all schedules that compile to it.
      total_seconds, dot_seconds, compute_seconds: as `Timeline`; other compute than dots counts in
        the last.
      communication_seconds: seconds in which a transfer between chips is under way.
      exposed_seconds: seconds in which the chip waits for a transfer between chips.
      link_bytes: bytes over the links, by axis and direction.
      mfu: flops over the bf16 peak.
      modelled_seconds: the cost model's estimate of `total_seconds`; 0 if it has no such schedule.
      compile_seconds: measured; other programs may have been compiled at the same time.
      temporary_bytes: HBM of a chip beyond arguments and results.
      refused: why the schedule cannot serve; numbers are 0 then.
    """

    case: str
    rows: int
    weights: str
    target: str
    schedule: str
    program: str = ""
    total_seconds: float = 0.0
    dot_seconds: float = 0.0
    compute_seconds: float = 0.0
    communication_seconds: float = 0.0
    exposed_seconds: float = 0.0
    link_bytes: Mapping[str, float] = dataclasses.field(default_factory=dict)
    mfu: float = 0.0
    modelled_seconds: float = 0.0
    compile_seconds: float = 0.0
    temporary_bytes: int = 0
    refused: str = ""

    def __str__(self) -> str:
        return f"{self.case}, {self.rows} {self.weights}, {self.schedule}"

    @property
    def hidden_fraction(self) -> float:
        """The fraction of communication that the chip does not wait for."""
        if not self.communication_seconds:
            return 1.0
        return 1 - self.exposed_seconds / self.communication_seconds


@dataclasses.dataclass(frozen=True)
class Task:
    """A case under a schedule or in a form, for a target by name."""

    case: AnyCase
    schedule: str | Schedule
    target: str

    @property
    def is_narrow(self) -> bool:
        """Whether its weights have less than 16 bits: the bundles of its dots are counted, since the
        compiler's estimates of such dots are off by up to three times."""
        return self.case.weights == "int8"

    def __str__(self) -> str:
        return f"{self.case.name}, {self.case.rows} {self.case.weights}, {self.schedule}"


def measure(task: Task, cache_directory: str | os.PathLike[str]) -> Row:
    """Compiles and replays one task, with its bundles where it is narrow, or takes its program from the
    cache.

    Raises ModuleNotFoundError if libtpu is not installed.
    """
    if task.is_narrow:
        bundles.start()
    case = task.case
    row = Row(case.name, case.rows, case.weights, task.target, str(task.schedule))
    try:
        key, program = compiled(task, Cache(cache_directory))
    except ValueError as error:
        return dataclasses.replace(row, refused=str(error))
    slice_ = _target(task.target)
    timeline = replay(program.text, mesh_of(slice_))
    layers = case.layers
    return dataclasses.replace(
        row,
        program=key,
        total_seconds=timeline.total_seconds / layers,
        dot_seconds=timeline.dot_seconds / layers,
        compute_seconds=timeline.compute_seconds / layers,
        communication_seconds=timeline.communication_seconds / layers,
        exposed_seconds=timeline.exposed_seconds / layers,
        link_bytes={link: moved / layers for link, moved in timeline.link_bytes.items()},
        mfu=timeline.mfu,
        modelled_seconds=_modelled_seconds(task, slice_),
        compile_seconds=program.compile_seconds,
        temporary_bytes=program.temporary_bytes,
    )


def compiled(task: Task, cache: Cache) -> tuple[str, Program]:
    """The program of a task and its key in the cache; it has the counts of bundles where this process
    dumps them.

    Raises ValueError if the schedule cannot serve the case.
    """
    name = source_name(SOURCES, task.target, task.case, task.schedule)
    kept = cache.recall(name)
    if kept is not None:
        return kept
    lowered, options = _lower(task)
    key = program_key(lowered, task.target, options)
    program = cache.compiled(key, lambda: _compile(task, lowered, options), name)
    return key + bundles.mark(), program


def compile_task(task: Task) -> jax.stages.Compiled:
    """Compiles a task, without a cache.

    Raises ValueError if the schedule cannot serve the case.
    """
    return _compile(task, *_lower(task))


def _lower(task: Task) -> tuple[jax.stages.Lowered, Options]:
    mesh = mesh_of(_target(task.target))
    return task.case.lower(mesh, task.schedule), task.case.options(task.schedule, mesh)


def _compile(task: Task, lowered: jax.stages.Lowered, options: Options) -> jax.stages.Compiled:
    return _target(task.target).compile(lowered, compiler_options=options)


def timeline(task: Task, cache_directory: str | os.PathLike[str]) -> Timeline:
    """The replay of all layers of a task, by bundles where this process dumps them."""
    _, program = compiled(task, Cache(cache_directory))
    return replay(program.text, mesh_of(_target(task.target)))


def measure_all(
    tasks: Sequence[Task], cache_directory: str | os.PathLike[str], workers: int = 2
) -> Iterator[tuple[int, Row]]:
    """Measures tasks in processes of their own, each with its own compiler.

    Yields the place of a task and its row, in the order in which they finish.
    """
    arguments = [(task, os.fspath(cache_directory)) for task in tasks]
    narrow = [task.is_narrow for task in tasks]
    yield from in_processes(measure, arguments, workers, apart=narrow)


def _modelled_seconds(task: Task, slice_: Target) -> float:
    if isinstance(task.case, FeedForward) or slice_.chip is None:
        return 0.0
    chip = slice_.chip if task.schedule in IN_JIT else slice_.chip.under_options()
    choice = task.case.choice(mesh_of(slice_), chip)
    wanted = as_schedule(schedule_of(task.schedule)) or choice.schedule
    return next((row.seconds for row in choice.rows if row.schedule == wanted), 0.0)


@functools.cache
def _target(name: str) -> Target:
    return target(name)
