"""Arguments of `python -m bench`: parsed, and refused in one line before anything is compiled."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from pathlib import Path
from typing import NoReturn

from absl.flags import argparse_flags

WEIGHTS = ("bf16", "int8")


class Parser(argparse_flags.ArgumentParser):
    """A parser that also takes absl's flags, and raises `ValueError` where argparse would exit."""

    def error(self, message: str) -> NoReturn:
        """Refuses arguments; the message for an unknown word suggests the nearest known one."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if wrong is not None:
            near = difflib.get_close_matches(wrong[1], re.findall(r"[\w-]+", wrong[2]), n=1)
            message += f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{message.removeprefix('argument ').lstrip(': ')} ({self.prog} --help lists all)"
        )


def positive(text: str) -> int:
    """Parses an integer of at least 1."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)


def positives(text: str) -> tuple[int, ...]:
    """Parses integers of at least 1, separated by commas."""
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of whole numbers of at least 1; write them as 64,512"
        )
    return tuple(map(int, text.split(",")))


def words(text: str) -> tuple[str, ...]:
    """Parses words separated by commas."""
    return tuple(text.split(","))


def weights(text: str) -> tuple[str, ...]:
    """Parses dtypes of weights, separated by commas."""
    for word in words(text):
        if word not in WEIGHTS:
            raise argparse.ArgumentTypeError(
                f"there are no weights {word!r}; write bf16, int8 or bf16,int8"
            )
    return words(text)


def output(text: str) -> str:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a folder; name a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {str(path.parent)!r} to write it in")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; name another file")
    return text


def picture(text: str) -> str:
    """A PNG file that can be written."""
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} is no PNG; end its name in .png")
    return output(text)


def folder(text: str) -> str:
    """A folder that can be written, or made."""
    path = Path(text).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{str(there)!r} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written; name another folder")
    return text


def check_unused(options: argparse.Namespace, reason: str, **defaults: object) -> None:
    """Refuses arguments that would have no effect.

    Args:
      options: the parsed arguments; an argument that was not given is None or False in it.
      reason: why the arguments have no effect, and what to write instead.
      defaults: names of the arguments, each with its value when it is not given.

    Raises:
      ValueError: one of them was given.
    """
    for name, default in defaults.items():
        if getattr(options, name) != default:
            raise ValueError(f"--{name} has no effect here: {reason}")
