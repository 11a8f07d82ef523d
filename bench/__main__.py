"""`python -m bench`: is the library right, and what does it gain?"""

from __future__ import annotations

import argparse
import logging as logging_of_python
import os
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from bench import command_line, commands, interrupts


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
    """Parses a command line; exits with status 2 and a one-line message if it is wrong."""
    try:
        return command_line.parser().parse_args(argv[1:])
    except (ValueError, flags.Error) as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _execute(options: argparse.Namespace) -> int:
    # The bench only compiles for a TPU slice, unless it times what is attached; the correctness checks
    # run on the CPU.
    if getattr(options, "target", "") != commands.ATTACHED:
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


if __name__ == "__main__":
    interrupts.answer_interrupts()
    app.run(_execute, flags_parser=_parse)
