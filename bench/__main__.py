"""`python -m bench`: is the library right, and what does it gain?"""

from __future__ import annotations

import argparse
import importlib.util
import logging as logging_of_python
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import app, flags, logging

from bench import arguments, interrupts

# Nothing here imports jax before `main` has set its environment.
DESCRIPTION = """\
Without a command: runs every function under every schedule on 8 emulated devices against plain
einsum, then compiles the einsums of PaLM 540B's feedforward for a TPU v4 slice with the real TPU
compiler (no TPU needed), and prints what a replay of the compiled schedule predicts.

measured: run here. counted: read in a compiled program. predicted: compiled for the target and
replayed. published: from a paper.
"""
TARGET = "v4:4x4x4"
_BATCH, _LENGTH = 64, 2048
_FEEDFORWARD, _ATTENTION = ("WS 2D",), ("batch xyz",)
_EVERY_SECONDS = 10


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      words: arguments without the program's name; None for those of the process.

    Returns:
      The exit status: 0; 1 if a result is wrong; 2 if arguments are; 130 after Ctrl-C.
    """
    try:
        options = _parse(sys.argv if words is None else ["bench", *words])
    except SystemExit as error:
        return int(error.code or 0)
    return _execute(options)


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses a command line; leaves with status 2 and one line if it is wrong."""
    try:
        return argument_parser().parse_args(argv[1:])
    except (ValueError, flags.Error) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _execute(options: argparse.Namespace) -> int:
    # A TPU slice is only compiled for, and correctness runs on the CPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    if flags.FLAGS["verbosity"].using_default_value:
        logging.set_verbosity(logging.INFO)
    for name in ("jax", "matplotlib"):
        logging_of_python.getLogger(name).setLevel(logging_of_python.WARNING)
    try:
        return options.run(options)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        interrupts.kill_workers()
        print(interrupts.MESSAGE, file=sys.stderr)
        return interrupts.STATUS


def argument_parser() -> arguments.Parser:
    """The parser of all commands; `run` of what it parses is the function that does it."""
    caching = arguments.Parser(
        add_help=False, argument_default=argparse.SUPPRESS, inherited_absl_flags=None
    )
    caching.add_argument(
        "--cache",
        type=arguments.folder,
        metavar="DIR",
        help="where compiled programs are kept (.bench_cache)",
    )
    caching.add_argument(
        "--workers", type=arguments.positive, metavar="N", help="processes that compile (2)"
    )
    shared = arguments.Parser(
        add_help=False,
        argument_default=argparse.SUPPRESS,
        inherited_absl_flags=None,
        parents=[caching],
    )
    shared.add_argument(
        "--json",
        type=arguments.output,
        metavar="FILE",
        help="write every row, with versions and target",
    )
    parser = arguments.Parser(
        prog="python -m bench",
        description=DESCRIPTION,
        parents=[shared],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=_main_job, json=None, cache=".bench_cache", workers=2)
    commands = parser.add_subparsers(title="commands", metavar="")
    _add_collectives(commands, shared)
    _add_timeline(commands, shared)
    _add_layers(commands, shared)
    _add_paper(commands, caching)
    return parser


def _add_collectives(commands: Any, shared: arguments.Parser) -> None:
    command = commands.add_parser(
        "collectives",
        parents=[shared],
        help="all schedules of all einsums; goes on where it was interrupted",
        description="Compiles and replays the einsums of PaLM 540B's feedforward under every "
        "schedule, and the whole feedforward: blocking and `in jit` by jax.jit, all else by ce.jit. All "
        "times but those of compiling are predicted.",
    )
    command.set_defaults(run=_collectives)
    command.add_argument("--target", default=TARGET, help=f"slice to compile for ({TARGET})")
    command.add_argument(
        "--full",
        action="store_true",
        help="all numbers of rows, int8 weights, and gathered weights",
    )
    command.add_argument("--rows", type=arguments.positives, help="numbers of rows, such as 64,512")
    command.add_argument("--weights", type=arguments.weights, help="bf16, int8 or bf16,int8")
    command.add_argument("--only", default="", help="cases whose name contains this")


def _add_timeline(commands: Any, shared: arguments.Parser) -> None:
    command = commands.add_parser(
        "timeline",
        parents=[shared],
        help="one case in detail: a table, a picture, a trace",
        description="Replays one case under one schedule, beside what the compiler's own scheduler "
        "says of it.",
    )
    command.set_defaults(run=_timeline)
    command.add_argument("--target", default=TARGET, help=f"slice to compile for ({TARGET})")
    command.add_argument("--case", required=True, help="part of a case's name, or feedforward")
    command.add_argument("--rows", type=arguments.positive, default=512, help="rows (512)")
    command.add_argument("--weights", default="bf16", choices=arguments.WEIGHTS)
    command.add_argument(
        "--schedule",
        default="auto",
        help="a schedule's name, chunked:CHUNKS[:LABEL[:DIRECTION]] with CHUNKS such as 4 or 1+3, or a "
        "form of the feedforward",
    )
    command.add_argument("--png", type=arguments.picture, metavar="FILE", help="draw it")
    command.add_argument(
        "--trace", type=arguments.output, metavar="FILE", help="write a trace for ui.perfetto.dev"
    )


def _add_layers(commands: Any, shared: arguments.Parser) -> None:
    command = commands.add_parser(
        "layers",
        parents=[shared],
        help="what a layer of a decoder costs, per phase and layout",
        description="On a slice: compiles steps of a decoder and replays them; without sizes, the "
        "configurations of the paper. On cpu:N and attached: runs a small decoder and checks it.",
    )
    command.set_defaults(run=_layers)
    command.add_argument("--target", default=TARGET, help=f"slice, cpu:N or attached ({TARGET})")
    command.add_argument("--model", help="name of a model (palm-540b)")
    command.add_argument("--phase", choices=("decode", "prefill"), help="one phase, with sizes:")
    command.add_argument("--batch", type=arguments.positive, help="sequences (64)")
    command.add_argument("--length", type=arguments.positive, help="context or prompt (2048)")
    command.add_argument("--weights", choices=arguments.WEIGHTS, help="(bf16)")
    command.add_argument(
        "--feedforward",
        type=arguments.words,
        help="layouts, such as 'WS 2D,WS 2D batch,WG XYZ' (WS 2D)",
    )
    command.add_argument(
        "--attention",
        type=arguments.words,
        help="layouts, such as 'heads,batch xyz' (batch xyz)",
    )
    command.add_argument("--schedules", type=arguments.words, help="(blocking,auto)")
    command.add_argument(
        "--unrolled",
        action="store_true",
        help="each layer's weights in arrays of their own; compiles for minutes",
    )


def _add_paper(commands: Any, shared: arguments.Parser) -> None:
    command = commands.add_parser(
        "paper",
        parents=[shared],
        help="the paper's results beside the analytical model's and our programs'",
        description="Writes report.md with pictures and report.json: what was published, what the "
        "analytical model says, and what replays of our programs predict. Goes on where it was "
        "interrupted.",
    )
    command.set_defaults(run=_paper)
    command.add_argument("--full", action="store_true", help="all rows; else some, in minutes")
    command.add_argument(
        "--out", type=arguments.folder, metavar="DIR", default="paper_report", help="(paper_report)"
    )


def _main_job(options: argparse.Namespace) -> int:
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


def _collectives(options: argparse.Namespace) -> int:
    from bench.einsum_suite import report
    from bench.einsum_suite import tasks as collectives

    _check_slice(options.target)
    tasks = collectives.tasks(
        options.target, options.full, options.rows, options.weights, options.only
    )
    if not tasks:
        known = dict.fromkeys(
            task.case.name for task in collectives.tasks(options.target, full=True)
        )
        raise ValueError(
            f"there is no case whose name contains {options.only!r} among {', '.join(known)} with "
            "these rows and weights"
        )
    rows = _measured(tasks, options)
    compared = report.comparisons(rows)
    print(f"{options.target}\n")
    print(f"{report.print_comparisons(compared)}\n\n{report.comparisons_legend(compared)}\n")
    print(f"{report.print_choices(compared)}\n\n{report.choices_legend()}\n")
    print(f"{report.print_summary(rows)}\n\n{report.print_conclusion(compared)}")
    _save_json(options, rows=rows)
    return 0


def _layers(options: argparse.Namespace) -> int:
    if options.target.startswith("cpu:") or options.target == "attached":
        return _layers_here(options)
    from bench.decoder_suite import layers, phases

    _check_slice(options.target)
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
    )
    if options.phase is not None:
        # Schedules are alike in this.
        for phase in {(p.feedforward, p.attention): p for p in wanted}.values():
            phase.check(layers.mesh_of(options.target))
    rows: dict[int, Any] = {}
    measured = layers.measure_all(wanted, options.target, options.cache, options.workers)
    for place, row in measured:
        rows[place] = row
        _progress("compiled %d of %d: %s", len(rows), len(wanted), row.phase)
    ordered = [rows[place] for place in sorted(rows)]
    unrolled = ", layers unrolled" if options.unrolled else ""
    model = options.model or "palm-540b"
    print(f"{model} on {options.target}{unrolled}\n\n{layers.print_rows(ordered)}")
    _save_json(options, rows=ordered)
    return 1 if all(row.refused for row in ordered) else 0


def _layers_here(options: argparse.Namespace) -> int:
    """Runs a small decoder on emulated or attached devices."""
    names = ("model", "phase", "batch", "length", "weights", "feedforward", "attention")
    arguments.check_unused(
        options,
        f"--target {options.target} runs a small decoder of its own; name a slice, such as "
        f"--target {TARGET}",
        **dict.fromkeys((*names, "schedules")),
        unrolled=False,
    )
    if options.target == "attached":
        os.environ.pop("JAX_PLATFORMS")
    from bench.decoder_suite import run_small
    from collective_einsum.ruler.compile import target

    where = target(options.target)
    chips = len(where.devices)
    if options.target != "attached" and chips & (chips - 1):
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


def _paper(options: argparse.Namespace) -> int:
    from bench.paper import report as paper

    if options.json:
        raise ValueError("--json has no effect here: paper writes report.json into --out DIR")

    def progress(text: str) -> None:
        _progress("%s", text)

    print(
        paper.report(
            options.out,
            options.cache,
            progress=progress,
            full=options.full,
            workers=options.workers,
        )
    )
    return 0


def _timeline(options: argparse.Namespace) -> int:
    from bench.einsum_suite import measure
    from bench.einsum_suite import tasks as collectives
    from collective_einsum.ruler.replay import scheduler_verdict

    _check_slice(options.target)
    asked = (options.case, options.rows, options.weights, options.schedule, options.target)
    task = collectives.find_task(*asked)
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
    """The rows of all tasks, in the order of the tasks."""
    from bench.einsum_suite.measure import measure_all

    rows: dict[int, Any] = {}
    for place, row in measure_all(tasks, options.cache, options.workers):
        rows[place] = row
        _progress("compiled %d of %d: %s", len(rows), len(tasks), row)
    return [rows[place] for place in sorted(rows)]


def _check_slice(name: str) -> None:
    """Refuses a target that cannot be compiled for, or is no TPU slice, before anything else."""
    from collective_einsum.ruler.compile import target

    if target(name).can_run:
        raise ValueError(f"--target {name} is no TPU slice; name one, such as {TARGET}")


def _save_json(options: argparse.Namespace, **rows: Any) -> None:
    """Writes rows to the file of --json, if it was given."""
    if options.json:
        from bench.einsum_suite import report

        report.save_json(options.json, **rows)
        print(f"\nrows written to {options.json}")


def _progress(text: str, *values: Any) -> None:
    """Logs the first of these lines, and then one every `_EVERY_SECONDS`."""
    logging.log_every_n_seconds(logging.INFO, text, _EVERY_SECONDS, *values)


if __name__ == "__main__":
    interrupts.answer_interrupts()
    app.run(_execute, flags_parser=_parse)
