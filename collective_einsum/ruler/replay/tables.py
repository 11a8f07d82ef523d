"""Plain text tables, and the legends below them."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterable, Mapping, Sequence

# Characters of a terminal's line; tables and legends fit it.
WIDTH = 120


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats a table with its first column left-aligned and the others right-aligned."""
    cells = [list(head), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Formats the same table in Markdown."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def legend(meanings: Mapping[str, str], subject: str = "Columns") -> str:
    """The meaning of every column of a table, to stand below it: `Columns: column: meaning; ...`,
    wrapped at `WIDTH`."""
    return "\n".join(wrapped(_meaning(meanings, subject)))


def wrapped(text: str) -> list[str]:
    """The lines of a paragraph, wrapped at `WIDTH`; those after the first are indented."""
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def _meaning(meanings: Mapping[str, str], subject: str) -> str:
    text = "; ".join(f"{column}: {meaning}" for column, meaning in meanings.items())
    return f"{subject}: {text}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells, each column with its meaning.

    Attributes:
      rows: the cells, one for each column.
      meanings: columns from left to right, each with its meaning; then names of rows that need one.
      columns: the number of columns; by default, every name in `meanings` is one.
    """

    rows: tuple[tuple[str, ...], ...]
    meanings: Mapping[str, str]
    columns: int | None = None

    @property
    def head(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.meanings)[: self.columns]

    @property
    def meaning(self) -> str:
        """The legend as one line."""
        return _meaning(self.meanings, "Columns" if self.columns is None else "Columns and rows")

    def __str__(self) -> str:
        return "\n".join([table(self.head, self.rows), "", *wrapped(self.meaning)])
