"""`python -m bench`: is the library right, and what does it gain?"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

# Nothing here imports jax before `main` has set its environment.
DESCRIPTION = """\
Without a command: runs every function under every schedule on 8 emulated devices against plain
einsum, then compiles the einsums of PaLM 540B's feedforward for a TPU v4 slice with the real TPU
compiler (no TPU needed), and prints what a replay of the compiled schedule predicts.

measured: run here. counted: read in a compiled program. predicted: compiled for the target and
replayed. published: from a paper.
"""
TARGET = "v4:4x4x4"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit status, 1 if a result is wrong."""
    options = argument_parser().parse_args(arguments)
    # A TPU slice is only compiled for, and correctness runs on the CPU.
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        return options.run(options)
    except (ValueError, ModuleNotFoundError) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what was compiled is kept, run it again to go on", file=sys.stderr)
        return 130


def argument_parser() -> argparse.ArgumentParser:
    """Of all commands; `run` of what it parses is the function that does it."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--json", metavar="FILE", help="write every row, with versions and target")
    shared.add_argument(
        "--cache", metavar="DIR", help="where compiled programs are kept (.bench_cache)"
    )
    shared.add_argument("--workers", type=int, metavar="N", help="processes that compile (2)")
    parser = argparse.ArgumentParser(
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
    _add_paper(commands, shared)
    return parser


def _add_collectives(commands: Any, shared: argparse.ArgumentParser) -> None:
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
    command.add_argument("--rows", type=_integers, help="numbers of rows, such as 64,512")
    command.add_argument("--weights", type=_words, help="bf16, int8 or bf16,int8")
    command.add_argument("--only", default="", help="cases whose name contains this")


def _add_timeline(commands: Any, shared: argparse.ArgumentParser) -> None:
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
    command.add_argument("--rows", type=int, default=512, help="rows (512)")
    command.add_argument("--weights", default="bf16", choices=("bf16", "int8"))
    command.add_argument(
        "--schedule",
        default="auto",
        help="a schedule's name, chunked:CHUNKS[:LABEL[:DIRECTION]] with CHUNKS such as 4 or 1+3, or a "
        "form of the feedforward",
    )
    command.add_argument("--png", metavar="FILE", help="draw it")
    command.add_argument("--trace", metavar="FILE", help="write a trace for ui.perfetto.dev")


def _add_layers(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "layers",
        parents=[shared],
        help="what a layer of a decoder costs, per phase and layout",
        description="On a slice: compiles steps of a decoder and replays them; without sizes, the "
        "configurations of the paper. On cpu:N and attached: runs a small decoder and checks it.",
    )
    command.set_defaults(run=_layers)
    command.add_argument("--target", default=TARGET, help=f"slice, cpu:N or attached ({TARGET})")
    command.add_argument("--model", default="palm-540b", help="name of a model (palm-540b)")
    command.add_argument("--phase", choices=("decode", "prefill"), help="one phase, with sizes:")
    command.add_argument("--batch", type=int, default=64, help="sequences (64)")
    command.add_argument("--length", type=int, default=2048, help="context or prompt (2048)")
    command.add_argument("--weights", default="bf16", choices=("bf16", "int8"))
    command.add_argument(
        "--feedforward",
        type=_words,
        default=("WS 2D",),
        help="layouts, such as 'WS 2D,WS 2D batch,WG XYZ' (WS 2D)",
    )
    command.add_argument(
        "--attention",
        type=_words,
        default=("batch xyz",),
        help="layouts, such as 'heads,batch xyz' (batch xyz)",
    )
    command.add_argument(
        "--schedules", type=_words, default=("blocking", "auto"), help="(blocking,auto)"
    )
    command.add_argument(
        "--unrolled",
        action="store_true",
        help="each layer's weights in arrays of their own; compiles for minutes",
    )


def _add_paper(commands: Any, shared: argparse.ArgumentParser) -> None:
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
    command.add_argument("--out", metavar="DIR", default="paper_report", help="(paper_report)")


def _main_job(options: argparse.Namespace) -> int:
    from bench import correctness
    from bench.einsum_suite import report
    from bench.einsum_suite import tasks as collectives
    from collective_einsum.ruler.compile import target

    start = time.perf_counter()
    progress = _Progress()
    outcomes: list[correctness.Outcome] = []
    for outcome in correctness.run(target("cpu:8")):
        outcomes.append(outcome)
        progress.show(f"checked {len(outcomes)}: {outcome.check}, {outcome.schedule}")
    progress.clear()
    print("Is it right? On 8 emulated CPU devices, in float32.\n")
    print(correctness.print_outcomes(outcomes))
    print(
        f"\nlargest error {correctness.largest_error(outcomes):.1e}, "
        f"allowed {correctness.TOLERANCE:.0e}\n"
    )
    rows: list[Any] = []
    print(f"What does it gain? PaLM 540B's feedforward in bf16 on {collectives.SHORT_TARGET}.\n")
    if importlib.util.find_spec("libtpu") is None:
        print(
            "That needs libtpu, the TPU compiler (not a TPU), which is not installed; on Linux: "
            "python -m pip install -e '.[bench]'"
        )
    else:
        rows = _measured(collectives.short_tasks(), options)
        print(report.print_short(report.comparisons(rows)))
        print(
            "\nlimit: compute or communication as in blocking, the longer of the two; auto is compiled "
            "by ce.jit, with the options of the chip's compiler"
        )
    if options.json:
        report.save_json(options.json, checks=outcomes, rows=rows)
    print(f"\ndone in {time.perf_counter() - start:.0f} s (measured)")
    return 0 if all(outcome.passed for outcome in outcomes) else 1


def _collectives(options: argparse.Namespace) -> int:
    from bench.einsum_suite import report
    from bench.einsum_suite import tasks as collectives

    tasks = collectives.tasks(
        options.target, options.full, options.rows, options.weights, options.only
    )
    if not tasks:
        raise ValueError(f"there is no case whose name contains {options.only!r}")
    rows = _measured(tasks, options)
    print(f"{options.target}\n")
    print(report.print_comparisons(report.comparisons(rows)))
    print(f"\n{report.print_summary(rows)}")
    if options.json:
        report.save_json(options.json, rows=rows)
    return 0


def _layers(options: argparse.Namespace) -> int:
    if options.target.startswith("cpu:") or options.target == "attached":
        if options.target == "attached":
            os.environ.pop("JAX_PLATFORMS")
        from bench.decoder_suite import run_small as layers_run
        from collective_einsum.ruler.compile import target

        where, progress = target(options.target), _Progress()
        found: list[layers_run.RunRow] = []
        count = len(layers_run.Case.on(len(where.devices)).pairs())
        for row in layers_run.run(where):
            found.append(row)
            progress.show(f"checked {len(found)} of {count}: {row.feedforward}, {row.attention}")
        progress.clear()
        print(layers_run.print_rows(found, where))
        return 0 if all(row.passed for row in found) else 1
    from bench.decoder_suite import layers, phases
    from bench.einsum_suite import report

    wanted = phases.chosen(
        options.model,
        options.phase,
        options.batch,
        options.length,
        options.weights,
        options.feedforward,
        options.attention,
        options.schedules,
        unrolled=options.unrolled,
    )
    progress = _Progress()
    rows: dict[int, Any] = {}
    measured = layers.measure_all(wanted, options.target, options.cache, options.workers)
    for place, row in measured:
        rows[place] = row
        progress.show(f"compiled {len(rows)} of {len(wanted)}: {row.phase}")
    progress.clear()
    ordered = [rows[place] for place in sorted(rows)]
    print(f"{options.model} on {options.target}\n\n{layers.print_rows(ordered)}")
    if options.json:
        report.save_json(options.json, rows=ordered)
    return 0


def _paper(options: argparse.Namespace) -> int:
    from bench.paper import report as paper

    progress = _Progress()
    how: dict[str, Any] = {"full": options.full, "workers": options.workers}
    text = paper.report(options.out, options.cache, progress=progress.show, **how)
    progress.clear()
    print(text)
    return 0


def _timeline(options: argparse.Namespace) -> int:
    from bench.einsum_suite import measure, report
    from bench.einsum_suite import tasks as collectives
    from collective_einsum.ruler.replay import scheduler_verdict

    what = (options.case, options.rows, options.weights, options.schedule, options.target)
    task = collectives.find_task(*what)
    found = measure.timeline(task, options.cache)
    print(f"{task}, {options.target}, {task.case.layers} layers\n\n{found}\n")
    print(scheduler_verdict("bench.einsum_suite.tasks:compile_again", *what))
    if options.png:
        found.save_png(options.png)
    if options.trace:
        found.save_trace(options.trace)
    if options.json:
        report.save_json(options.json, rows=[measure.measure(task, options.cache)])
    return 0


def _measured(tasks: Sequence[Any], options: argparse.Namespace) -> list[Any]:
    """The rows of all tasks, in the order of the tasks."""
    from bench.einsum_suite.measure import measure_all

    progress = _Progress()
    rows: dict[int, Any] = {}
    for place, row in measure_all(tasks, options.cache, options.workers):
        rows[place] = row
        progress.show(f"compiled {len(rows)} of {len(tasks)}: {row}")
    progress.clear()
    return [rows[place] for place in sorted(rows)]


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.split(","))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


class _Progress:
    """One line on standard error that the next replaces; elsewhere than on a terminal, a line now
    and then."""

    def __init__(self, every_seconds: float = 20):
        self.every_seconds = every_seconds
        self.last = time.monotonic()

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text[:120]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self.last > self.every_seconds:
            self.last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
