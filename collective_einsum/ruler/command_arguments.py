"""Arguments of `python -m collective_einsum.ruler`: parsed, and refused before anything is compiled."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

FUNCTION = "MODULE:FUNCTION"


class Parser(argparse.ArgumentParser):
    """A parser that answers a mistake in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with status 2 and the message."""
        self.exit(2, f"{self.prog}: {message} (--help lists all)\n")


def function_of_module(text: str) -> tuple[str, str]:
    """A function by its module and name, as `mymodel:step`."""
    module, colon, function = text.partition(":")
    if not (module and colon and function.isidentifier()):
        raise argparse.ArgumentTypeError(f"{text!r} is not {FUNCTION}, such as mymodel:step")
    return module, function


def module_file(text: str) -> Path:
    """The file of an HLO module, which must be there."""
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def program(text: str) -> Path | tuple[str, str]:
    """A program to compare: the file of an HLO module, or a function by its module and name."""
    if Path(text).is_file():
        return Path(text)
    if ":" in text:
        return function_of_module(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is neither a file that is there nor {FUNCTION}, such as mymodel:step"
    )


def option(text: str) -> tuple[str, str]:
    """An option of the compiler, as `NAME=VALUE`."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def axes(text: str) -> dict[str, int]:
    """The axes of a mesh with their sizes, as `data=4,model=4`."""
    sizes = re.findall(r"(\w+)=([1-9]\d*)", text)
    if not sizes or ",".join(f"{name}={size}" for name, size in sizes) != text:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not AXIS=SIZE between commas, such as data=4,model=4"
        )
    return {name: int(size) for name, size in sizes}


def output(suffix: str = "") -> Callable[[str], str]:
    """Parses the name of a file that can be written, and that ends in `suffix`."""

    def parsed(text: str) -> str:
        path = Path(text)
        if not text.endswith(suffix):
            raise argparse.ArgumentTypeError(f"{text!r}: end its name in {suffix}")
        there = path if path.exists() else path.parent
        if path.is_dir() or not path.parent.is_dir() or not os.access(there, os.W_OK):
            raise argparse.ArgumentTypeError(
                f"{text!r} cannot be written; name a file in a folder that is there"
            )
        return text

    return parsed
