"""The arguments of `python -m bench` and of its commands."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bench import arguments, commands

if TYPE_CHECKING:
    # Only the type checker knows this class as generic.
    _Subparsers = argparse._SubParsersAction[arguments.Parser]

_DESCRIPTION = """\
Without a command: runs every function under every schedule on 8 emulated devices against plain
einsum, then compiles the einsums of PaLM 540B's feedforward for a TPU v4 slice with the real TPU
compiler (no TPU needed), and prints what a replay of the compiled schedule predicts.

measured: run here. counted: read in a compiled program. predicted: compiled for the target and
replayed. published: from a paper.
"""


def parser() -> arguments.Parser:
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
    result = arguments.Parser(
        prog="python -m bench",
        description=_DESCRIPTION,
        parents=[shared],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.set_defaults(run=commands.check_and_predict, json=None, cache=".bench_cache", workers=2)
    subparsers = result.add_subparsers(title="commands", metavar="")
    _add_collectives(subparsers, shared)
    _add_timeline(subparsers, shared)
    _add_layers(subparsers, shared)
    _add_models(subparsers, shared)
    _add_swapped(subparsers, shared)
    _add_paper(subparsers, caching)
    _add_truth(subparsers, shared)
    _add_calibrate(subparsers, caching)
    return result


def _add_collectives(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "collectives",
        parents=[shared],
        help="all schedules of all einsums; goes on where it was interrupted",
        description="Compiles and replays the einsums of PaLM 540B's feedforward under every "
        "schedule, and the whole feedforward: blocking and `in jit` by jax.jit, all else by ce.jit. All "
        "times but those of compiling are predicted.",
    )
    command.set_defaults(run=commands.collectives)
    _add_target(command, "slice to compile for")
    command.add_argument(
        "--full",
        action="store_true",
        help="all numbers of rows, int8 weights, and gathered weights",
    )
    command.add_argument("--rows", type=arguments.positives, help="numbers of rows, such as 64,512")
    command.add_argument("--weights", type=arguments.weights, help="bf16, int8 or bf16,int8")
    command.add_argument("--only", default="", help="cases whose name contains this")


def _add_timeline(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "timeline",
        parents=[shared],
        help="one case in detail: a table, a picture, a trace",
        description="Replays one case under one schedule, next to what the compiler's own scheduler "
        "says of it.",
    )
    command.set_defaults(run=commands.timeline)
    _add_target(command, "slice to compile for")
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


def _add_unrolled(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--unrolled",
        action="store_true",
        help="each layer's weights in arrays of their own; compiles for minutes",
    )


def _add_layers(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "layers",
        parents=[shared],
        help="what a layer of a decoder costs, per phase and layout",
        description="On a slice: compiles steps of a decoder and replays them; without sizes, the "
        "configurations of the paper. On cpu:N and attached: runs a small decoder and checks it.",
    )
    command.set_defaults(run=commands.layers)
    _add_target(command, "slice, cpu:N or attached")
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
    _add_unrolled(command)
    command.add_argument(
        "--compiler_options",
        choices=("step", "chip", "sparse_cores"),
        help="compiler options of every schedule: none for 'blocking' and those of ce.jit for others, "
        "as layouts.decode_step has them; those of ce.jit; or these with all-gathers on SparseCores "
        "(step)",
    )


def _add_models(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "models",
        parents=[shared],
        help="open models at their real sizes: does it fit, how long does a token take",
        description="Plans decoding with open models on slices, compiles the planner's choices and "
        "replays them. All times are predicted.",
    )
    command.set_defaults(run=commands.models)
    command.add_argument(
        "--model", type=arguments.words, help="names of models (those of the README)"
    )
    command.add_argument("--target", type=arguments.words, help="slices (those of the README)")
    command.add_argument("--batch", type=arguments.positive, help="sequences (32)")
    command.add_argument("--length", type=arguments.positive, help="context (4096)")
    command.add_argument(
        "--weights", choices=arguments.WEIGHTS, help="(bf16, or int8 where that does not fit)"
    )
    command.add_argument("--int8_cache", action="store_true", help="keys and values are int8")
    _add_unrolled(command)


def _add_swapped(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "swapped",
        parents=[shared],
        help="layers as users write them, with plain einsums and with ours in their place",
        description="Compiles layers of transformers, under jit and in shard_map, with jnp's einsums "
        "and with ours in their place, each under several sets of compiler options, and replays them. "
        "All times are predicted.",
    )
    command.set_defaults(run=commands.swapped)
    command.add_argument("--target", type=arguments.words, help="slices (all that it knows)")
    command.add_argument("--only", metavar="TEXT", help="programs whose names contain this")


def _add_paper(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "paper",
        parents=[shared],
        help="the paper's results next to the analytical model's and our programs'",
        description="Writes report.md with pictures and report.json: what was published, what the "
        "analytical model says, and what replays of our programs predict. Goes on where it was "
        "interrupted.",
    )
    command.set_defaults(run=commands.paper)
    command.add_argument("--full", action="store_true", help="all rows; else some, in minutes")
    command.add_argument(
        "--out", type=arguments.folder, metavar="DIR", default="paper_report", help="(paper_report)"
    )


def _add_truth(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "truth",
        parents=[shared],
        help="figures that others measured on TPUs next to the ruler's predictions",
        description="Compiles and replays a program for each measured figure (links and collectives, "
        "dots and HBM, models, the paper) and prints predicted, measured and the residual. Goes on "
        "where it was interrupted.",
    )
    command.set_defaults(run=commands.truth)
    command.add_argument("--full", action="store_true", help="all rows; else some, in minutes")


def _add_calibrate(subparsers: _Subparsers, shared: arguments.Parser) -> None:
    command = subparsers.add_parser(
        "calibrate",
        parents=[shared],
        help="what the installed compiler makes of dots on a chip, as the data file of the chip",
        description="Compiles dots of many sizes and dtypes for one chip of a slice, and writes their "
        "cycles to a file of the chip and the version of libtpu. Narrow dots have the bundles counted "
        "that they issue, others have the compiler's estimates. Goes on where it was interrupted. "
        "--target attached times the dots on the TPU that is there instead.",
    )
    command.set_defaults(run=commands.calibrate)
    _add_target(command, "slice of such chips, or attached")
    command.add_argument(
        "--out",
        type=arguments.folder,
        metavar="DIR",
        help="folder of the file (collective_einsum/chips/observed, where the library reads it)",
    )


def _add_target(command: arguments.Parser, meaning: str) -> None:
    default = commands.TARGET
    command.add_argument("--target", default=default, help=f"{meaning} ({default})")
