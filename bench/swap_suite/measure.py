"""Compiles each program under several sets of options, replays it, and prints who is faster."""

from __future__ import annotations

import dataclasses
import functools
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence

import jax

import collective_einsum as ce
from bench.sources import SOURCES
from bench.swap_suite.programs import LAYERS, Program
from collective_einsum import ruler
from collective_einsum.advise import option_sets
from collective_einsum.chips import Chip
from collective_einsum.ruler.compile import Cache, in_processes, source_name, target
from collective_einsum.ruler.replay import legend, replay, table

Options = Mapping[str, object]
OURS, DEFAULT = "ours: ", "default"
_SCATTERS = {"xla_tpu_enable_sparse_core_collective_offload_reduce_scatter": True}


@dataclasses.dataclass(frozen=True)
class Form:
    """A program with einsums of jnp or ours, under a set of compiler options.

    Attributes:
      name: of both, in the table.
      ours: whether its einsums are this library's.
      options: names and values.
      chip: for whose options ours choose schedules; None for the compiler's own.
    """

    name: str
    ours: bool
    options: Options
    chip: Chip | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A program in one form; seconds are those of a layer, predicted.

    Attributes:
      program: its name.
      target: the slice.
      form: the name of the form.
      total_seconds, dot_seconds, exposed_seconds: as of `Timeline`.
    """

    program: str
    target: str
    form: str
    total_seconds: float
    dot_seconds: float
    exposed_seconds: float


def forms(chip: Chip) -> list[Form]:
    """What a user could have for free, and ours.

    The compiler makes loops of permutes of einsums ("windowed einsum") under the first alone: most
    programs are faster without.
    """
    off = option_sets(chip)["no windowed einsum"]
    chips: dict[str, tuple[Chip, Options]] = {"ce.jit": (chip, {})}
    if chip.sparse_core_options:
        chips["SparseCores"] = (chip.with_sparse_cores(), {})
        chips["and scatters"] = (chip.with_sparse_cores(), _SCATTERS)
        chips["queue"] = (chip.with_sparse_core_queue(), {})
    found = [Form(DEFAULT, False, {}), Form("no windowed einsum", False, off)]
    ours = [Form(f"{OURS}default", True, off)]
    for name, (known, more) in chips.items():
        options = {**dict(known.compiler_options), **more}
        found.append(Form(name, False, options))
        ours.append(Form(f"{OURS}{name}", True, options, known))
    return [*found, *ours]


def measure(program: Program, form: Form, cache_directory: str | os.PathLike[str]) -> Row:
    """Compiles and replays a program in a form, or takes its row from the cache."""
    cache = Cache(cache_directory)
    name = source_name(SOURCES, program.target, program, form.name)
    kept = cache.load_row(name)
    if kept is not None:
        return Row(**kept)
    mesh = ruler.mesh(program.target, program.axes, axis_types=program.axis_types)
    jit = jax.jit if form.chip is None else functools.partial(ce.jit, chip=form.chip)
    compiled = program.lower(mesh, ours=form.ours, jit=jit).compile(
        compiler_options=dict(form.options) or None
    )
    timeline = replay(compiled, mesh)
    row = Row(
        program.name,
        program.target,
        form.name,
        timeline.total_seconds / LAYERS,
        timeline.dot_seconds / LAYERS,
        timeline.exposed_seconds / LAYERS,
    )
    cache.store_row(name, dataclasses.asdict(row))
    return row


def tasks(programs: Sequence[Program]) -> list[tuple[Program, Form]]:
    """Every program in every form."""
    return [(program, form) for program in programs for form in forms(chip_of(program.target))]


def chip_of(name: str) -> Chip:
    """The chip of a slice."""
    chip = target(name).chip
    if chip is None:
        raise ValueError(f"target {name!r} is no slice of a known chip")
    return chip


def measure_all(
    chosen: Sequence[tuple[Program, Form]],
    cache_directory: str | os.PathLike[str],
    workers: int = 2,
) -> Iterator[tuple[int, Row]]:
    """Runs `measure` in worker processes; yields places and rows as they finish."""
    arguments = [(*task, os.fspath(cache_directory)) for task in chosen]
    yield from in_processes(measure, arguments, workers)


_MEANINGS = {
    "slice": "its mesh is d x t: 16 x 4, or 4 x 4",
    "plain us": "a layer, with jnp's einsums and lax's collectives, under the fastest of the options",
    "under": "these options: of ce.jit; gathers on SparseCores, and scatters; their queue; all but the "
    "compiler's own without windowed einsums",
    "exposed": "of it, the chip waits for other chips",
    "ours us": "a layer with ce.einsum, or with the functions for shard_map, under the fastest options",
    "ratio": "plain us / ours us",
}


def print_rows(rows: Sequence[Row]) -> str:
    """The fastest plain and the fastest of ours of each program, as a table."""
    names = list(dict.fromkeys((row.program, row.target) for row in rows))
    cells: list[tuple[str, ...]] = []
    ratios: list[float] = []
    by_default: list[float] = []
    for name in names:
        of_program = [row for row in rows if (row.program, row.target) == name]
        plain, ours = (
            min(
                (row for row in of_program if row.form.startswith(OURS) == wanted),
                key=lambda row: row.total_seconds,
            )
            for wanted in (False, True)
        )
        ratio = plain.total_seconds / ours.total_seconds
        ratios.append(ratio)
        default = next(row for row in of_program if row.form == DEFAULT)
        by_default.append(default.total_seconds / ours.total_seconds)
        cells.append(
            (
                *name,
                *(f"{plain.total_seconds * 1e6:.1f}", plain.form),
                f"{plain.exposed_seconds * 1e6:.1f}",
                *(f"{ours.total_seconds * 1e6:.1f}", ours.form.removeprefix(OURS)),
                f"{ours.exposed_seconds * 1e6:.1f}",
                f"{ratio:.3f}",
            )
        )
    head = ("program, predicted", "slice", "plain us", "under", "exposed")
    head += ("ours us", "under", "exposed", "ratio")
    means = (
        f"geometric mean of the ratios: {statistics.geometric_mean(ratios):.3f}; with plain programs "
        f"under the compiler's default options: {statistics.geometric_mean(by_default):.3f}"
    )
    return "\n".join([table(head, cells), "", legend(_MEANINGS), "", means])
