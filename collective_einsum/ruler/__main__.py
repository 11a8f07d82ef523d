"""`python -m collective_einsum.ruler`: how fast is a program on a TPU slice, what does it wait for?"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from collective_einsum.ruler.compile.targets import TOPOLOGIES
from collective_einsum.ruler.compile.targets import target as target_of
from collective_einsum.ruler.prediction import predict
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m collective_einsum.ruler", description=_DESCRIPTION
    )
    commands = parser.add_subparsers(title="commands", metavar="", required=True)
    files = argparse.ArgumentParser(add_help=False)
    files.add_argument("--png", metavar="FILE", type=_picture, help="draw the timeline")
    files.add_argument("--trace", metavar="FILE", help="write a trace for ui.perfetto.dev")

    command = commands.add_parser(
        "predict",
        parents=[files],
        help="a function of yours",
        description="Calls MODULE:FUNCTION without arguments. It returns what to compile: (function, "
        "*arguments), the arguments being jax.ShapeDtypeStructs sharded over a mesh that "
        "collective_einsum.ruler.mesh made; or what jax.jit(function).lower(...) gave.",
    )
    command.set_defaults(run=_predict)
    command.add_argument("function", metavar="MODULE:FUNCTION", type=_named)
    command.add_argument("--target", help="the slice, such as v5e:4x4; checked against the mesh")
    command.add_argument(
        "--option",
        metavar="NAME=VALUE",
        type=_option,
        action="append",
        default=[],
        help="an option of the compiler; may be given several times",
    )

    command = commands.add_parser(
        "hlo",
        parents=[files],
        help="the text of a compiled module, such as a dump of a run",
        description="Replays a scheduled HLO module: compiled.as_text(), or a file "
        "*after_optimizations.txt that --xla_dump_to wrote.",
    )
    command.set_defaults(run=_hlo)
    command.add_argument("file", metavar="FILE", type=Path)
    command.add_argument("--target", required=True, help="the slice, such as v5e:4x4")
    command.add_argument(
        "--mesh", metavar="AXIS=SIZE,...", type=_axes, help="such as data=4,model=4 (one axis)"
    )

    command = commands.add_parser("targets", help="what can be compiled for")
    command.set_defaults(run=_targets)
    return parser


def _predict(options: argparse.Namespace) -> str:
    module, function = options.function
    if options.target is not None:
        # `target` sets the environment that libtpu needs before the module asks jax for anything.
        target_of(options.target)
    sys.path.insert(0, os.getcwd())
    made = getattr(importlib.import_module(module), function)()
    program, *args = made if isinstance(made, tuple) else (made,)
    if not callable(program) and not hasattr(program, "compile"):
        raise ValueError(
            f"{module}:{function} returned {type(made).__name__}; let it return (function, "
            "*arguments), or what jax.jit(function).lower(...) gave"
        )
    timeline = predict(program, *args, target=options.target, options=dict(options.option))
    return _written(timeline, options)


def _hlo(options: argparse.Namespace) -> str:
    timeline = predict(options.file.read_text(), target=options.target, mesh_axes=options.mesh)
    return _written(timeline, options)


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
    return "\n".join(lines)


def _conclusion(timeline: Timeline) -> str:
    text = f"So the program is predicted to take {timeline.total_seconds * 1e6:.1f} us"
    if not timeline.communication_seconds:
        return f"{text}, and nothing is sent between chips."
    text += f"; {timeline.hidden_fraction:.0%} of its communication is overlapped with compute"
    waits = max(timeline.by_line(), key=lambda row: row.exposed)
    if waits.exposed and waits.line is not None:
        text += f", and it waits longest at {waits.line}: {waits.exposed * 1e6:.1f} us"
    return f"{text}."


def _named(text: str) -> tuple[str, str]:
    module, colon, function = text.partition(":")
    if not (module and colon and function.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:FUNCTION, such as mymodel:step")
    return module, function


def _option(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _axes(text: str) -> dict[str, int]:
    axes = re.findall(r"(\w+)=([1-9]\d*)", text)
    if not axes or ",".join(f"{name}={size}" for name, size in axes) != text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not AXIS=SIZE between commas, such as data=4,model=4"
        )
    return {name: int(size) for name, size in axes}


def _picture(text: str) -> str:
    if not text.endswith(".png"):
        raise argparse.ArgumentTypeError(f"{text!r} is no picture; end its name in .png")
    return text


if __name__ == "__main__":
    sys.exit(main())
