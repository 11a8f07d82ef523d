"""Arguments of `python -m layouts`: parsed, and refused in one line before anything is read."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from collective_einsum.text import did_you_mean

from ..mesh.slice_meshes import as_shape


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake in one line, and says which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2 and the message."""
        self.exit(2, f"{self.prog}: {message} (--help lists all)\n")

    def refuse_unknown(self, words: Sequence[str]) -> None:
        """Ends the process where words are left that are no arguments."""
        if words:
            options = [option for action in self._actions for option in action.option_strings]
            hint = did_you_mean(words[0], options)
            self.error(f"there is no argument {words[0]!r}{hint}")


def one_of(words: Iterable[str]) -> Callable[[str], str]:
    """Parses one of some words."""
    known = tuple(words)

    def parsed(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(
                f"{text!r} is none of {', '.join(known)}{did_you_mean(text, known)}"
            )
        return text

    return parsed


def positive(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def number(text: str) -> float:
    """A number; what settings it may have, `layouts.Sampling` says."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def shape(text: str) -> tuple[int, int, int]:
    """The sizes of the mesh axes x, y and z, as `2,2,2` or `2x2x2`."""
    try:
        sizes = as_shape("", text.replace(",", "x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not X,Y,Z, the sizes of a mesh, such as 2,2,2"
        ) from None
    return sizes["x"], sizes["y"], sizes["z"]


def existing(text: str) -> Path:
    """A folder or file that is there."""
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"there is no {text!r}")
    return path


def text_file(text: str) -> str:
    """The text of a file."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no text in UTF-8: {error}") from None
