"""The commands of `python -m bench`: functions of the parsed arguments that return an exit status.

This module does not import jax, since the environment has to be set first: each function imports
what it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import logging

from bench import arguments

TARGET = "v4:4x4x4"
ATTACHED = "attached"
_BATCH, _LENGTH = 64, 2048
_FEEDFORWARD, _ATTENTION = ("WS 2D",), ("batch xyz",)
_EVERY_SECONDS = 10


def check_and_predict(options: argparse.Namespace) -> int:
    """Checks every function on emulated devices, and predicts what the schedules gain on a slice."""
    from bench import correctness
    from bench.einsum_suite import report
    from bench.einsum_suite import tasks as collectives
    from collective_einsum.ruler.compile import target

    start = time.perf_counter()
    outcomes: list[correctness.Outcome] = []
    for outcome in correctness.run(target("cpu:8")):
        outcomes.append(outcome)
        _progress("checked %d: %s, %s", len(outcomes), outcome.check, outcome.schedule)
    print("Is it right? On 8 emulated CPU devices, in float32.\n")
    print(correctness.print_outcomes(outcomes))
    print(
        f"\nlargest error {correctness.largest_error(outcomes):.1e}, "
        f"allowed {correctness.TOLERANCE:.0e}"
    )
    wrong = sum(not outcome.passed for outcome in outcomes)
    print(f"{len(outcomes)} checks: {f'{wrong} are WRONG' if wrong else 'none is wrong'}.\n")
    rows: list[Any] = []
    print(f"What does it gain? PaLM 540B's feedforward in bf16 on {collectives.SHORT_TARGET}.\n")
    if importlib.util.find_spec("libtpu") is None:
        print(
            "That needs libtpu, the TPU compiler (not a TPU), which is not installed; on Linux: "
            "python -m pip install -e '.[bench]'"
        )
    else:
        rows = _measured(collectives.short_tasks(), options)
        compared = report.comparisons(rows)
        print(report.print_short(compared))
        print(f"\n{report.short_legend(compared)}\n\n{report.print_conclusion(compared)}")
    _save_json(options, checks=outcomes, rows=rows)
    print(f"\ndone in {time.perf_counter() - start:.0f} s (measured)")
    return 1 if wrong else 0


def collectives(options: argparse.Namespace) -> int:
    """Replays the einsums of a feedforward under every schedule."""
    from bench.einsum_suite import report, tasks

    _check_slice(options.target)
    chosen = tasks.tasks(options.target, options.full, options.rows, options.weights, options.only)
    if not chosen:
        known = dict.fromkeys(task.case.name for task in tasks.tasks(options.target, full=True))
        raise ValueError(
            f"there is no case whose name contains {options.only!r} among {', '.join(known)} with "
            "these rows and weights"
        )
    rows = _measured(chosen, options)
    compared = report.comparisons(rows)
    print(f"{options.target}\n")
    print(f"{report.print_comparisons(compared)}\n\n{report.comparisons_legend(compared)}\n")
    print(f"{report.print_choices(compared)}\n\n{report.choices_legend()}\n")
    print(f"{_wrapped(report.print_summary(rows))}\n\n{report.print_conclusion(compared)}")
    _save_json(options, rows=rows)
    return 0


def layers(options: argparse.Namespace) -> int:
    """Replays steps of a decoder on a slice, or runs a small one on `cpu:N` and `attached`."""
    if options.target.startswith("cpu:") or options.target == ATTACHED:
        return _layers_here(options)
    from bench.decoder_suite import layers, phases

    _check_slice(options.target)
    compiled_under = options.compiler_options or "step"
    if options.phase is None:
        arguments.check_unused(
            options,
            "without --phase, the paper's configurations are compiled; add --phase decode or "
            "--phase prefill",
            **dict.fromkeys(("batch", "length", "weights", "feedforward", "attention")),
        )
    wanted = phases.chosen(
        options.model or "palm-540b",
        options.phase,
        options.batch or _BATCH,
        options.length or _LENGTH,
        options.weights or "bf16",
        options.feedforward or _FEEDFORWARD,
        options.attention or _ATTENTION,
        options.schedules or ("blocking", "auto"),
        unrolled=options.unrolled,
        options=compiled_under,
    )
    if options.phase is not None:
        # Whether the layouts fit does not depend on the schedule: one phase a pair is checked.
        for phase in {(p.feedforward, p.attention): p for p in wanted}.values():
            phase.check(layers.mesh_of(options.target))
    measured = layers.measure_all(wanted, options.target, options.cache, options.workers)
    ordered = _in_order(measured, len(wanted), "compiled", lambda row: row.phase)
    unrolled = ", layers unrolled" if options.unrolled else ""
    model = options.model or "palm-540b"
    under = phases.OPTIONS[compiled_under]
    print(f"{model} on {options.target}{unrolled}, {under}\n\n{layers.print_rows(ordered)}")
    _save_json(options, rows=ordered)
    return 1 if all(row.refused for row in ordered) else 0


def _layers_here(options: argparse.Namespace) -> int:
    """Runs a small decoder on emulated or attached devices."""
    names = ("model", "phase", "batch", "length", "weights", "feedforward", "attention")
    arguments.check_unused(
        options,
        f"--target {options.target} runs a small decoder of its own; name a slice, such as "
        f"--target {TARGET}",
        **dict.fromkeys((*names, "schedules", "compiler_options")),
        unrolled=False,
    )
    from bench.decoder_suite import run_small
    from collective_einsum.ruler.compile import target

    where = target(options.target)
    chips = len(where.devices)
    if options.target != ATTACHED and chips & (chips - 1):
        raise ValueError(
            f"--target cpu:{chips}: the small decoder needs a power of two, such as "
            f"cpu:{1 << chips.bit_length()}"
        )
    rows: list[run_small.RunRow] = []
    count = len(run_small.Case.on(chips).pairs())
    for row in run_small.run(where):
        rows.append(row)
        _progress("checked %d of %d: %s, %s", len(rows), count, row.feedforward, row.attention)
    print(run_small.print_rows(rows, where))
    _save_json(options, rows=rows)
    return 0 if all(row.passed for row in rows) else 1


def models(options: argparse.Namespace) -> int:
    """Plans decoding with open models on slices, and replays the planner's choices."""
    from bench.decoder_suite import open_models

    batch = options.batch or open_models.BATCH
    context = options.length or open_models.CONTEXT
    slices = options.target or open_models.SLICES
    for name in slices:
        _check_slice(name)
    choices = [
        open_models.choose(
            model,
            slice_,
            batch,
            context,
            options.weights,
            int8_cache=options.int8_cache,
            unrolled=options.unrolled,
        )
        for model in options.model or open_models.MODELS
        for slice_ in slices
    ]
    measured = open_models.measure_all(choices, options.cache, options.workers)
    ordered = _in_order(measured, len(choices), "replayed", lambda row: row.model)
    print(open_models.print_rows(ordered, batch, context))
    _save_json(options, rows=ordered)
    return 0


def swapped(options: argparse.Namespace) -> int:
    """Replays layers as users write them, with plain einsums and with ours."""
    from bench.swap_suite import measure, programs

    known = programs.programs()
    slices = options.target or programs.SLICES
    chosen = [
        program
        for program in known
        if program.target in slices and (options.only or "") in program.name
    ]
    if not chosen:
        names = "; ".join(dict.fromkeys(program.name for program in known))
        raise ValueError(
            f"there is no program whose name contains {options.only or ''!r} on {', '.join(slices)}: "
            f"there are {names}, each on {', '.join(programs.SLICES)}"
        )
    tasks = measure.tasks(chosen)
    measured = measure.measure_all(tasks, options.cache, options.workers)
    rows = _in_order(measured, len(tasks), "replayed", lambda row: f"{row.program}, {row.form}")
    print(measure.print_rows(rows))
    _save_json(options, rows=rows)
    return 0


def paper(options: argparse.Namespace) -> int:
    """Writes the report that compares the paper's results with predictions."""
    from bench.paper import report as paper

    if options.json:
        raise ValueError("--json has no effect here: paper writes report.json into --out DIR")

    def progress(text: str) -> None:
        _progress("%s", text)

    said = paper.report(
        options.out,
        options.cache,
        progress=progress,
        full=options.full,
        workers=options.workers,
    )
    print(_wrapped(said))
    return 0


def truth(options: argparse.Namespace) -> int:
    """Prints the predictions of figures that others measured, and how far they are off."""
    from bench.truth import measure, report

    start = time.perf_counter()
    asked = measure.records(options.full)
    predicted = measure.predict_all(asked, options.cache, options.workers)
    ordered = _in_order(predicted, len(asked), "replayed", lambda outcome: outcome.record.label)
    print(report.print_outcomes(ordered))
    _save_json(options, outcomes=ordered)
    print(f"\ndone in {time.perf_counter() - start:.0f} s (measured)")
    return 0


def calibrate(options: argparse.Namespace) -> int:
    """Observes dots and memory passes of a slice's chip, or times the dots of the attached one, and
    writes the chip's file."""
    from bench.calibration import attached, observe, report
    from bench.calibration.dots import dots
    from bench.calibration.passes import passes
    from collective_einsum.ruler.compile import target

    if options.json:
        raise ValueError("--json has no effect here: calibrate writes a JSON file into --out DIR")
    if options.target == ATTACHED:
        chip, device = attached.device()
        # On one device, nothing is gathered or scattered.
        name, asked = chip.observed, [dot for dot in dots(chip) if dot.on_one_device]
        observing = attached.measure_all(asked, chip, device)
    else:
        _check_slice(options.target)
        chip, name = target(options.target).chip, options.target.partition(":")[0]
        assert chip is not None
        asked = [*dots(chip), *passes()]
        observing = observe.observe_all(asked, options.target, options.cache, options.workers)
    seen: dict[int, Any] = {}
    for place, observation in observing:
        seen[place] = observation
        _progress("observed %d of %d: %s", len(seen), len(asked), asked[place])
    found = observe.observations(chip, options.target, [seen[place] for place in sorted(seen)])
    print(report.print_observations(found))
    print(f"\nwritten to {report.write(found, name, options.out)}")
    return 0


def timeline(options: argparse.Namespace) -> int:
    """Replays one case, prints its timeline, draws it and writes a trace."""
    from bench.einsum_suite import measure
    from bench.einsum_suite import tasks as collectives
    from collective_einsum.ruler import bundles
    from collective_einsum.ruler.replay import scheduler_verdict

    asked = (options.case, options.rows, options.weights, options.schedule, options.target)
    task = collectives.find_task(*asked)
    if task.is_narrow:
        # Before libtpu starts.
        bundles.start()
    _check_slice(options.target)
    replayed = measure.timeline(task, options.cache)
    title = f"{task.case.name}, {task.case.rows} rows, {task.case.weights}, {task.schedule}"
    print(f"{title}, {options.target}, {task.case.layers} layers\n\n{replayed}\n")
    print(scheduler_verdict("bench.einsum_suite.tasks:compile_again", *asked))
    print(
        f"\nSo a layer is predicted to take {replayed.total_seconds / task.case.layers * 1e6:.1f} us; "
        f"{replayed.hidden_fraction:.0%} of its communication is overlapped with compute."
    )
    if options.png:
        replayed.save_png(options.png, title=title, layers=task.case.layers)
        print(f"picture written to {options.png}")
    if options.trace:
        replayed.save_trace(options.trace)
        print(f"trace written to {options.trace}")
    if options.json:
        _save_json(options, rows=[measure.measure(task, options.cache)])
    return 0


def _measured(tasks: Sequence[Any], options: argparse.Namespace) -> list[Any]:
    """Measures all tasks; returns their rows in the order of the tasks."""
    from bench.einsum_suite.measure import measure_all

    measured = measure_all(tasks, options.cache, options.workers)
    return _in_order(measured, len(tasks), "compiled", lambda row: row)


def _in_order(
    finished: Iterable[tuple[int, Any]], count: int, verb: str, label: Callable[[Any], object]
) -> list[Any]:
    """The rows of `count` tasks by their places; says each as it is finished."""
    rows: dict[int, Any] = {}
    for place, row in finished:
        rows[place] = row
        _progress(f"{verb} %d of %d: %s", len(rows), count, label(row))
    return [rows[place] for place in sorted(rows)]


def _check_slice(name: str) -> None:
    """Refuses a target that is no TPU slice, or that libtpu cannot compile for."""
    from collective_einsum.ruler.compile import target

    if target(name).can_run:
        raise ValueError(f"--target {name} is no TPU slice; name one, such as {TARGET}")


def _save_json(options: argparse.Namespace, **rows: Any) -> None:
    """Writes rows to the file of --json, if it was given."""
    if options.json:
        from bench.einsum_suite import report

        report.save_json(options.json, **rows)
        print(f"\nrows written to {options.json}")


def _wrapped(text: str) -> str:
    """The same lines, those that are wider than a terminal wrapped."""
    from collective_einsum.ruler.replay import wrapped

    return "\n".join(part for line in text.splitlines() for part in wrapped(line) or [""])


def _progress(text: str, *values: Any) -> None:
    """Logs the first line of progress, and then one every `_EVERY_SECONDS`."""
    logging.log_every_n_seconds(logging.INFO, text, _EVERY_SECONDS, *values)
