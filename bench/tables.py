"""Helpers of every suite's tables: the packages that a kept row depends on, and legends."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

# A compiled program and its replay are made from the sources of these packages.
SOURCES = ("collective_einsum", "layouts", "bench")
# Columns of a terminal that tables and legends fit.
WIDTH = 120


def legend(meanings: Mapping[str, str]) -> str:
    """The meaning of every column of a table, to stand below it: `column: meaning; ...`, wrapped at
    `WIDTH`."""
    text = "; ".join(f"{column}: {meaning}" for column, meaning in meanings.items())
    return "\n".join(textwrap.wrap(f"Columns: {text}.", WIDTH, subsequent_indent="  "))
