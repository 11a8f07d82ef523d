"""`python -m layouts`: text from a checkpoint, scores of texts, and the planner's table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import get_args

from collective_einsum.text import did_you_mean
from layouts.command_line import arguments, generate, plan, score
from layouts.planning.plan import Objective

_DESCRIPTION = """\
Runs open models from their checkpoints on a mesh of devices, attached or emulated; without a checkpoint,
a small model of random weights shows that it works. What was chosen is said on stderr."""
_COMMANDS = ("generate", "score", "plan")


def main(words: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      words: arguments without the program's name; None for those of the process.

    Returns:
      The exit status: 0; 2 if arguments are wrong or something cannot be read.
    """
    words = sys.argv[1:] if words is None else list(words)
    parser = _parser()
    if words and not words[0].startswith("-") and words[0] not in _COMMANDS:
        parser.error(
            f"there is no command {words[0]!r}; choose {', '.join(_COMMANDS)}"
            f"{did_you_mean(words[0], _COMMANDS)}"
        )
    options, unknown = parser.parse_known_args(words)
    options.parser.refuse_unknown(unknown)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"{options.parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> arguments.Parser:
    parser = arguments.Parser(prog="python -m layouts", description=_DESCRIPTION)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_score(commands)
    _add_plan(commands)
    return parser


def _checkpoint() -> arguments.Parser:
    shared = arguments.Parser(add_help=False)
    shared.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        type=arguments.existing,
        help="a model's folder, as the Hugging Face hub has it",
    )
    shared.add_argument(
        "--weights",
        type=arguments.one_of(("bf16", "int8")),
        default="bf16",
        help="bf16, or int8 with scales (bf16)",
    )
    shared.add_argument("--int8_cache", action="store_true", help="store keys and values as int8")
    shared.add_argument(
        "--int8_activations",
        action="store_true",
        help="with --weights int8: round activations to int8 before the matrices of layers",
    )
    shared.add_argument(
        "--mesh",
        metavar="X,Y,Z",
        type=arguments.shape,
        help="sizes of the mesh axes; the planner's choice unless given",
    )
    return shared


def _running() -> arguments.Parser:
    shared = arguments.Parser(add_help=False, parents=[_checkpoint()])
    shared.add_argument(
        "--emulate",
        metavar="X,Y,Z",
        type=arguments.shape,
        help="run on emulated devices: a mesh of these sizes, on this machine's processor",
    )
    shared.add_argument(
        "--dtype",
        type=arguments.one_of(("bfloat16", "float32")),
        default="bfloat16",
        help="of weights, activations and cache (bfloat16)",
    )
    shared.add_argument(
        "--tokenizer",
        metavar="FOLDER",
        type=arguments.existing,
        help="with tokenizer.json, if the checkpoint's folder has none",
    )
    shared.add_argument(
        "--plan",
        metavar="LAYOUTS",
        help='in the planner\'s words, such as "WS 2D, heads"; its choice unless given',
    )
    return shared


def _add_generate(commands: argparse._SubParsersAction[arguments.Parser]) -> None:
    command = commands.add_parser(
        "generate",
        parents=[_running()],
        help="text from a prompt",
        description="Continues prompts, and writes the text to stdout as it comes.",
    )
    command.set_defaults(run=generate.run, parser=command)
    command.add_argument(
        "--prompt", metavar="TEXT", action="append", help="may be given several times: a batch"
    )
    command.add_argument(
        "--tokens", metavar="N", type=arguments.positive, default=64, help="at most so many (64)"
    )
    command.add_argument(
        "--chat", action="store_true", help="put prompts into the model's chat template"
    )
    command.add_argument("--system", metavar="TEXT", help="a system message for --chat")
    command.add_argument(
        "--temperature", metavar="T", type=arguments.number, help="0 takes the likeliest token (0)"
    )
    command.add_argument(
        "--top_p",
        metavar="P",
        type=arguments.number,
        help="of the likeliest tokens that have this probability together",
    )
    command.add_argument(
        "--top_k", metavar="K", type=arguments.positive, help="of the K likeliest tokens"
    )
    command.add_argument(
        "--seed", metavar="N", type=int, default=0, help="of the first prompt; then N + 1 and so on"
    )
    command.add_argument(
        "--unrolled",
        action=argparse.BooleanOptionalAction,
        help="each layer's weights are arrays of their own, by default on TPUs: steps of few sequences "
        "are faster there, and compile for up to a second a layer",
    )


def _add_score(commands: argparse._SubParsersAction[arguments.Parser]) -> None:
    command = commands.add_parser(
        "score",
        parents=[_running()],
        help="the perplexity of a text; log-likelihoods of continuations",
        description="Scores a text, or continuations of a prompt.",
    )
    command.set_defaults(run=score.run, parser=command)
    command.add_argument(
        "--text", metavar="FILE", type=arguments.text_file, help="whose perplexity to print"
    )
    command.add_argument("--prompt", metavar="TEXT", help="what continuations continue")
    command.add_argument(
        "--continuation", metavar="TEXT", action="append", help="may be given several times"
    )
    command.add_argument(
        "--context",
        metavar="N",
        type=arguments.positive,
        default=1024,
        help="tokens of the windows of a text, each read on its own (1024)",
    )
    command.add_argument(
        "--batch",
        metavar="N",
        type=arguments.positive,
        default=8,
        help="windows that are read at a time (8)",
    )


def _add_plan(commands: argparse._SubParsersAction[arguments.Parser]) -> None:
    command = commands.add_parser(
        "plan",
        parents=[_checkpoint()],
        help="which layouts are fastest on a slice, and whether the model fits",
        description="Prints the planner's table; of a checkpoint, only config.json is read.",
    )
    command.set_defaults(run=plan.run, parser=command)
    command.add_argument("--model", metavar="NAME", help="a named model, such as palm-540b")
    command.add_argument("--target", metavar="SLICE", help="such as v5e:4x4")
    command.add_argument(
        "--phase",
        type=arguments.one_of(("decode", "prefill")),
        default="decode",
        help="decode or prefill (decode)",
    )
    command.add_argument("--batch", metavar="N", type=arguments.positive, help="sequences")
    command.add_argument(
        "--context", metavar="N", type=arguments.positive, help="positions in the cache, for decode"
    )
    command.add_argument(
        "--length", metavar="N", type=arguments.positive, help="of the prompts, for prefill"
    )
    command.add_argument(
        "--objective",
        type=arguments.one_of(get_args(Objective)),
        default="latency",
        help="latency, throughput or cost (latency)",
    )
    command.add_argument(
        "--replay",
        metavar="N",
        type=arguments.positive,
        help="compile the first N options for the slice, and rank them by replays of their programs: "
        "5 to 20 seconds each, and 1 or 2 of each unrolled layer (Linux)",
    )
    command.add_argument(
        "--unrolled",
        action="store_true",
        help="with --replay: each layer's weights are arrays of their own, as on TPUs by default",
    )


if __name__ == "__main__":
    sys.exit(main())
