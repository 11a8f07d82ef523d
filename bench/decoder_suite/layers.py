"""`python -m bench layers`: the time of a decoder's layer, by phase and layout.

A step is compiled and replayed with two numbers of layers; a layer's time is the difference over the
number of layers between, so that embedding and unembedding are not in it. Unrolled layers are compiled
differently for each number of layers: there one step is replayed, and the events in the named scopes
of embedding and unembedding are left out.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence

import jax
from jax.sharding import Mesh

from bench.decoder_suite.phases import Phase, mfu, split
from collective_einsum.ruler.compile import (
    Cache,
    Program,
    in_processes,
    lack_of_memory,
    program_key,
    target,
)
from collective_einsum.ruler.replay import Timeline, legend, replay, table, wrapped

# The number of ops printed below a row: those with the longest waits.
OPS_SHOWN = 3
# Named scopes of a step outside its layers.
OUTSIDE = frozenset(("embed", "unembed"))


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """A phase on a target, predicted; seconds are those of one layer.

    Attributes:
      phase, target: what the programs compute, and the slice they are compiled for.
      seconds: time of a layer.
      parts: seconds of matmuls, attention, exposed communication and the rest, by name.
      exposed_by_op: seconds of exposed communication, by the op that the chip waits for.
      step_seconds: time of the step with all its layers, embedding and unembedding.
      mfu: model FLOPS utilization of the layers alone, without padding.
      chip_bytes: memory of a chip, by the compiler: arguments, results and temporaries.
      compile_seconds: measured, for all layers.
      refused: why it cannot be compiled, or does not fit; numbers are 0 then.
    """

    phase: Phase
    target: str
    seconds: float = 0.0
    parts: Mapping[str, float] = dataclasses.field(default_factory=dict)
    exposed_by_op: Mapping[str, float] = dataclasses.field(default_factory=dict)
    step_seconds: float = 0.0
    mfu: float = 0.0
    chip_bytes: int = 0
    compile_seconds: float = 0.0
    refused: str = ""


def mesh_of(name: str, sides: Sequence[int] = ()) -> Mesh:
    """The mesh of a slice: x, y and z are its sides, of which a flat one has two, unless `sides` gives
    their sizes; the devices of a chip lie along the last side."""
    slice_ = target(name)
    return slice_.mesh([*(sides or slice_.sides), 1][:3], ("x", "y", "z"))


def measure(phase: Phase, target_name: str, cache_directory: str | os.PathLike[str]) -> LayerRow:
    """Compiles and replays a phase, or takes its programs from the cache.

    Raises ModuleNotFoundError if libtpu is not installed.
    """
    row = LayerRow(phase, target_name)
    mesh = mesh_of(target_name, phase.sides)
    cache = Cache(cache_directory)
    layers = phase.config.layers
    fewer = 0 if phase.unrolled else layers // 2
    try:
        long, program = replayed(phase, mesh, target_name, cache)
        if phase.unrolled:
            short = outside_layers(long)
        else:
            part = dataclasses.replace(phase, layers=fewer)
            short, _ = replayed(part, mesh, target_name, cache)
    except ValueError as error:
        return dataclasses.replace(row, refused=str(error))
    except jax.errors.JaxRuntimeError as error:
        reason = lack_of_memory(error)
        if not reason:
            raise
        return dataclasses.replace(row, refused=f"does not fit: {reason}")
    between = layers - fewer
    parts, less = split(long), split(short)
    seconds = (long.total_seconds - short.total_seconds) / between
    if phase.unrolled:
        seconds = (sum(parts.values()) - sum(less.values())) / between
    chip = target(target_name).chip
    peak = long.peak_flops if chip is None else chip.bf16_flops
    return dataclasses.replace(
        row,
        seconds=seconds,
        parts={name: (parts[name] - less[name]) / between for name in parts},
        exposed_by_op=_exposed_by_op(long, short, between),
        step_seconds=long.total_seconds,
        mfu=mfu(phase, mesh.size, peak, seconds * layers),
        chip_bytes=program.chip_bytes,
        compile_seconds=program.compile_seconds,
    )


def replayed(phase: Phase, mesh: Mesh, name: str, cache: Cache) -> tuple[Timeline, Program]:
    """Replays a phase's program, which is compiled if the cache does not have it."""
    lowered = phase.lower(mesh)
    options = phase.compiler_options(mesh)
    compile_ = lowered.compile
    if phase.options != "step":
        compile_ = functools.partial(lowered.compile, compiler_options=options)
    program = cache.compiled(program_key(lowered, name, options), compile_)
    return replay(program.text, mesh), program


def outside_layers(timeline: Timeline) -> Timeline:
    """The timeline of a step's embedding and unembedding alone."""
    kept = tuple(e for e in timeline.events if OUTSIDE & set(e.op_name.split("/")))
    return dataclasses.replace(timeline, events=kept)


def _exposed_by_op(long: Timeline, short: Timeline, layers: int) -> dict[str, float]:
    """Seconds in which one layer waits for a collective, by the end of its name in the program."""
    waiting: dict[str, float] = {}
    for timeline, sign in ((long, 1), (short, -1)):
        for event in timeline.events:
            if event.row == "stall" and event.kind == "collective":
                name = "/".join(event.op_name.split("/")[-2:]) or event.name
                waiting[name] = waiting.get(name, 0.0) + sign * event.seconds / layers
    shown = ((name, seconds) for name, seconds in waiting.items() if seconds > 1e-8)
    return dict(sorted(shown, key=lambda item: -item[1]))


def measure_all(
    phases: Sequence[Phase],
    target_name: str,
    cache_directory: str | os.PathLike[str],
    workers: int = 2,
) -> Iterator[tuple[int, LayerRow]]:
    """Measures phases in processes of their own; yields places and rows as they finish."""
    yield from in_processes(
        measure, [(phase, target_name, os.fspath(cache_directory)) for phase in phases], workers
    )


def print_rows(rows: Sequence[LayerRow]) -> str:
    """Formats the rows as a table; below it the ops that a row waits for, and the columns' meaning."""
    head = ("predicted, us a layer", *_MEANINGS)
    cells, notes = [], [""]
    for row in rows:
        phase = row.phase
        if row.refused:
            notes += wrapped(f"{phase}: {row.refused}")
            continue
        cells.append(
            (
                f"{phase.name} {phase.weights}",
                phase.feedforward,
                phase.attention,
                phase.schedule,
                _us(row.seconds),
                *(_us(row.parts[n]) for n in ("matmul", "attention", "exposed", "rest")),
                f"{row.mfu:.1%}",
                f"{row.chip_bytes / 2**30:.2f}",
            )
        )
        waits = list(row.exposed_by_op.items())[:OPS_SHOWN]
        if waits:
            ops = ", ".join(f"{name} {_us(seconds)} us" for name, seconds in waits)
            notes += wrapped(f"{phase.name} {phase.weights} {phase.schedule_name} waits for {ops}")
    return "\n".join([table(head, cells), *notes, "", legend(_MEANINGS), "", *_conclusion(rows)])


def _us(seconds: float) -> str:
    """Formats seconds as microseconds, with a decimal where there are few."""
    us = seconds * 1e6
    return f"{us:.1f}" if us < 1e4 else f"{us:.0f}"


_MEANINGS = {
    "feedforward": "its layout",
    "attention": "its layout",
    "schedule": "of every einsum with a collective",
    "total": "time of one layer, the sum of the next four",
    "matmul": "in matmuls other than attention's",
    "attend": "in attention's scores and values",
    "exposed": "waiting for communication that nothing overlaps",
    "rest": "in all else: norms, softmax, copies, waiting for HBM",
    "MFU": "flops of the layers' parameters over the bf16 peak of all chips",
    "GiB": "memory, GiB a chip; arguments, results and temporaries of the step",
}


def _conclusion(rows: Sequence[LayerRow]) -> list[str]:
    """Writes a sentence for every phase: its fastest row, and the gain over the slowest."""
    phases: dict[str, list[LayerRow]] = {}
    for row in rows:
        if not row.refused:
            phases.setdefault(f"{row.phase.name} {row.phase.weights}", []).append(row)
    lines = []
    for name, of_phase in phases.items():
        best = min(of_phase, key=lambda row: row.seconds)
        gain = max(row.seconds for row in of_phase) / best.seconds
        others = f", {gain:.2f} times as fast as the slowest" if len(of_phase) > 1 else ""
        layouts = f"{best.phase.feedforward}, {best.phase.attention}, {best.phase.schedule}"
        seconds = f"{_us(best.seconds)} us a layer"
        lines += wrapped(f"So {name} is predicted fastest with {layouts}: {seconds}{others}.")
    return lines or ["No row could be compiled."]
