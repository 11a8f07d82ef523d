"""`python -m collective_einsum.ruler`: how fast is a program on a TPU slice, what does it wait for?"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collective_einsum.advise import advise
from collective_einsum.ruler import command_arguments as arguments
from collective_einsum.ruler.bundles import dump
from collective_einsum.ruler.compile.targets import TOPOLOGIES
from collective_einsum.ruler.compile.targets import target as target_of
from collective_einsum.ruler.prediction import predict
from collective_einsum.ruler.replay.comparison import compare
from collective_einsum.ruler.replay.source_lines import short_path
from collective_einsum.ruler.replay.tables import wrapped
from collective_einsum.ruler.replay.timeline import Timeline

_DESCRIPTION = """\
Compiles a program for a TPU slice with the real TPU compiler (no TPU needed), replays the schedule on
the slice's torus, and says what it costs and what it waits for, op by op and line by line. All times are
predicted."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      words: arguments without the program's name; None for those of the process.

    Returns:
      The exit status: 0; 2 if arguments are wrong or the program cannot be compiled.
    """
    options = _parser().parse_args(words)
    # The ruler only compiles for the slice; an attached TPU stays free.
    os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        print(options.run(options))
    except (ValueError, OSError, ImportError, AttributeError) as error:
        print(f"python -m collective_einsum.ruler: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> arguments.Parser:
    parser = arguments.Parser(prog="python -m collective_einsum.ruler", description=_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="", required=True)
    files = arguments.Parser(add_help=False)
    files.add_argument(
        "--png", metavar="FILE", type=arguments.output(".png"), help="draw the timeline"
    )
    files.add_argument(
        "--trace",
        metavar="FILE",
        type=arguments.output(),
        help="write a trace for ui.perfetto.dev",
    )
    files.add_argument(
        "--html",
        metavar="FILE",
        type=arguments.output(".html"),
        help="write a page with the timeline to zoom, tables and source lines",
    )
    compiling = arguments.Parser(add_help=False)
    compiling.add_argument(
        "--option",
        metavar="NAME=VALUE",
        type=arguments.option,
        action="append",
        default=[],
        help="an option of the compiler; may be given several times",
    )
    on_mesh = arguments.Parser(add_help=False)
    on_mesh.add_argument(
        "--mesh",
        metavar="AXIS=SIZE,...",
        type=arguments.axes,
        help="of the text of a module: such as data=4,model=4 (one axis)",
    )

    command = commands.add_parser(
        "predict",
        parents=[files, compiling],
        help="a function of yours",
        description="Calls MODULE:FUNCTION without arguments. It returns what to compile: (function, "
        "*arguments), the arguments being jax.ShapeDtypeStructs sharded over a mesh that "
        "collective_einsum.ruler.mesh made; or what jax.jit(function).lower(...) gave.",
    )
    command.set_defaults(run=_predict)
    command.add_argument("function", metavar=arguments.FUNCTION, type=arguments.function_of_module)
    command.add_argument("--target", help="the slice, such as v5e:4x4; checked against the mesh")

    command.add_argument(
        "--bundles",
        action="store_true",
        help="count the code that dots and Pallas kernels issue; use it where estimates are wrong",
    )

    command = commands.add_parser(
        "hlo",
        parents=[files, on_mesh],
        help="the text of a compiled module, such as a dump of a run",
        description="Replays a scheduled HLO module: compiled.as_text(), or a file "
        "*after_optimizations.txt that --xla_dump_to wrote.",
    )
    command.set_defaults(run=_hlo)
    command.add_argument("file", metavar="FILE", type=arguments.module_file)
    command.add_argument("--target", required=True, help="the slice, such as v5e:4x4")

    command = commands.add_parser(
        "compare",
        parents=[compiling, on_mesh],
        help="two programs, group of ops by group of ops",
        description="Replays two programs, and says what differs by kind of op and by source line. A "
        "program is the FILE of a scheduled HLO module (see hlo), or MODULE:FUNCTION (see predict).",
    )
    command.set_defaults(run=_compare)
    for name in "AB":
        command.add_argument(
            name.lower(), metavar=name, type=arguments.program, help="FILE or MODULE:FUNCTION"
        )
    command.add_argument("--target", required=True, help="the slice, such as v5e:4x4")

    command = commands.add_parser(
        "advise",
        parents=[compiling],
        help="what would make a function of yours faster",
        description="Compiles what MODULE:FUNCTION returns, as for predict, under the compiler options "
        "that are worth trying; says what each gives, and what einsums of collective_einsum would save.",
    )
    command.set_defaults(run=_advise)
    command.add_argument("function", metavar=arguments.FUNCTION, type=arguments.function_of_module)
    command.add_argument("--target", help="the slice, such as v5e:4x4; checked against the mesh")
    command.add_argument(
        "--tries", metavar="N", type=int, default=4, help="source lines to change and replay (4)"
    )

    command = commands.add_parser("targets", help="what can be compiled for")
    command.set_defaults(run=_targets)
    return parser


def _predict(options: argparse.Namespace) -> str:
    if options.bundles:
        dump.start()
    program = _loaded(options.function, options.target)
    return _written(_timeline(program, options), options)


def _advise(options: argparse.Namespace) -> str:
    program, *args = _loaded(options.function, options.target)
    given = dict(options.option)
    return str(advise(program, *args, target=options.target, options=given, tries=options.tries))


def _hlo(options: argparse.Namespace) -> str:
    return _written(_timeline((options.file.read_text(),), options), options)


def _compare(options: argparse.Namespace) -> str:
    named = (options.a, options.b)
    if options.mesh and not any(isinstance(name, Path) for name in named):
        raise ValueError("--mesh has no effect here: neither program is the file of a module")
    if options.option and all(isinstance(name, Path) for name in named):
        raise ValueError("--option has no effect here: both programs are compiled already")
    # Texts are replayed and functions called before anything is compiled, so that mistakes come first.
    texts = {
        name: _timeline((name.read_text(),), options) for name in named if isinstance(name, Path)
    }
    functions = {
        name: _loaded(name, options.target) for name in named if not isinstance(name, Path)
    }
    timelines = texts | {name: _timeline(program, options) for name, program in functions.items()}
    return str(compare(*(timelines[name] for name in named)))


def _loaded(function: tuple[str, str], target: str | None) -> tuple[Any, ...]:
    """The program that a function of the caller's returns, and its arguments."""
    module, name = function
    if target is not None:
        # `target_of` sets the environment that libtpu needs before the module asks jax for anything.
        target_of(target)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    made = getattr(importlib.import_module(module), name)()
    program = made if isinstance(made, tuple) else (made,)
    if not program or not (callable(program[0]) or hasattr(program[0], "compile")):
        raise ValueError(
            f"{module}:{name} returned {type(made).__name__}; let it return (function, "
            "*arguments), or what jax.jit(function).lower(...) gave"
        )
    return program


def _timeline(program: tuple[Any, ...], options: argparse.Namespace) -> Timeline:
    """The timeline of a program with its arguments, or of the text of a module."""
    if isinstance(program[0], str):
        return predict(program[0], target=options.target, mesh_axes=options.mesh)
    return predict(*program, target=options.target, options=dict(options.option))


def _targets(options: argparse.Namespace) -> str:
    del options
    lines = [f"{name.partition(':')[0]}:{_sides(name)}, such as {name}" for name in TOPOLOGIES]
    return "\n".join(["TPU slices that can be compiled for, X and Y even:", *lines])


def _sides(name: str) -> str:
    return "x".join("XYZ"[: name.count("x") + 1])


def _written(timeline: Timeline, options: argparse.Namespace) -> str:
    """Returns the timeline as text with its conclusion; writes the files that were asked for."""
    lines = [str(timeline), "", *wrapped(_conclusion(timeline))]
    if options.png:
        timeline.save_png(options.png)
        lines.append(f"picture written to {options.png}")
    if options.trace:
        timeline.save_trace(options.trace)
        lines.append(f"trace written to {options.trace}")
    if options.html:
        timeline.save_html(options.html)
        lines.append(f"page written to {options.html}")
    return "\n".join(lines)


def _conclusion(timeline: Timeline) -> str:
    text = f"So the program is predicted to take {timeline.total_seconds * 1e6:.1f} us"
    if not timeline.communication_seconds:
        return f"{text}, and nothing is sent between chips."
    text += f"; {timeline.hidden_fraction:.0%} of its communication is overlapped with compute"
    waits = max(timeline.by_line(), key=lambda row: row.exposed)
    if waits.exposed and waits.line is not None:
        text += f", and it waits longest at {short_path(waits.line)}: {waits.exposed * 1e6:.1f} us"
    return f"{text}."


if __name__ == "__main__":
    sys.exit(main())
