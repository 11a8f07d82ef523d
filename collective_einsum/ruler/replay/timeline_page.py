"""Writes a timeline as one HTML page that needs no network: bars to zoom, tables, source lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from collective_einsum.ruler.hlo.stack_frames import SourceLine
from collective_einsum.ruler.replay.events import Event
from collective_einsum.ruler.replay.source_lines import LineSeconds, line_text, short_path
from collective_einsum.ruler.replay.tables import Table
from collective_einsum.ruler.replay.timeline_files import COLOURS, colour_name, threads

_TEMPLATE = Path(__file__).with_name("timeline_page.html")
_US = 1e6
# Names on bars of these colours are white; on the others they are black.
_DARK = ("#0072B2", "#D55E00", "#009E73")
_LINE_COLUMNS = {
    "line": "the innermost line outside collective_einsum and libraries of layers that the ops were "
    "traced from",
    "source": "its text, as it is now in the file",
    "us": "the sum of the next three",
    "compute": "the chip computes",
    "exposed": "it waits for a transfer between chips",
    "copies": "it waits for its own memory",
    "share": "of the total",
}


def save_page(
    path: str | os.PathLike[str],
    *,
    title: str,
    summary: str,
    rows: Sequence[str],
    events: Iterable[Event],
    total_seconds: float,
    tables: Mapping[str, Table],
    lines: Sequence[LineSeconds],
    notes: Sequence[str],
) -> None:
    """Writes the page.

    Args:
      path: name of the HTML file.
      title: the heading.
      summary: a sentence below it.
      rows: names of the rows of bars, from top to bottom; those without events are left out.
      events: in order of their start.
      total_seconds: seconds from the left to the right.
      tables: tables below the bars, by their titles.
      lines: the seconds of every source line; a click on one marks its bars.
      notes: sentences below the tables.
    """
    places = {row.line: place for place, row in enumerate(lines)}
    document = {
        "title": title,
        "summary": summary,
        "total": total_seconds * _US or 1.0,
        "colours": [
            {"name": name, "colour": colour, "ink": "#fff" if colour in _DARK else "#000"}
            for name, colour in COLOURS.items()
        ],
        "rows": [
            {"name": name, "events": [_event(event, places) for event in in_row]}
            for name, in_row in threads(rows, events)
            if in_row
        ],
        "lines": [_line(row.line) for row in lines],
        "tables": [
            *(_table(name, table) for name, table in tables.items()),
            *([_lines_table(lines, total_seconds)] if any(row.line for row in lines) else []),
        ],
        "notes": list(notes),
    }
    # No text of the program can end the script that holds the data.
    data = json.dumps(document).replace("<", "\\u003c")
    page = _TEMPLATE.read_text(encoding="utf-8").replace("@DATA@", data)
    Path(path).write_text(page, encoding="utf-8")


def _event(event: Event, places: Mapping[SourceLine | None, int]) -> dict[str, object]:
    return {
        "start": event.start * _US,
        "us": event.seconds * _US,
        "name": event.name,
        "op": event.op,
        "colour": list(COLOURS).index(colour_name(event)),
        "line": places.get(event.lines[0] if event.lines else None, -1),
        "bytes": event.bytes,
        "flops": event.flops,
    }


def _line(line: SourceLine | None) -> dict[str, str]:
    if line is None:
        return {"name": "(of no line)", "text": ""}
    function = line.function.rpartition("<locals>.")[2]
    return {
        "name": f"{short_path(line)} {function}".strip(),
        "text": line_text(line),
    }


def _table(title: str, table: Table) -> dict[str, object]:
    return {
        "title": title,
        "head": table.head,
        "rows": table.rows,
        "meaning": table.meaning,
        "text": ["line"],
    }


def _lines_table(lines: Sequence[LineSeconds], total_seconds: float) -> dict[str, object]:
    total = total_seconds or 1.0
    rows = []
    for row in lines:
        seconds = (row.seconds, row.compute, row.exposed, row.copies)
        named = _line(row.line)
        cells = (f"{s * _US:.2f}" for s in seconds)
        rows.append((named["name"], named["text"], *cells, f"{row.seconds / total:.1%}"))
    table = Table(rows=tuple(rows), meanings=_LINE_COLUMNS)
    return {
        **_table("Source lines", table),
        "text": ["line", "source"],
        "lines": list(range(len(lines))),
    }
