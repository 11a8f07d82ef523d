"""Draws a timeline as a picture, and writes it as a trace."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from collective_einsum.ruler.replay.events import STALL_ROW, Event

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The colour of each kind of event, by the name that legends give it; "waiting" is of the stalls. The
# palette is that of Okabe and Ito, which the colour-blind can distinguish.
COLOURS = {
    "dot": "#0072B2",
    "compute": "#56B4E9",
    "permute": "#009E73",
    "collective": "#D55E00",
    "copy": "#999999",
    "waiting for a collective": "#CC79A7",
    "waiting for a copy": "#F0E442",
}
_US = 1e6


def figure_class() -> type[Figure]:
    """matplotlib's Figure, which needs no display.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("drawing needs matplotlib: pip install -e '.[bench]'") from error
    return Figure


def save_png(
    path: str | os.PathLike[str],
    title: str,
    rows: Sequence[str],
    events: Iterable[Event],
    total_seconds: float,
    layers: int = 1,
) -> None:
    """Draws events, one row above the other, microseconds to the right; rows without events are left
    out, and the starts of layers are marked.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    figure_of = figure_class()
    from matplotlib.patches import Patch

    by_row = {row: in_row for row, in_row in _by_row(rows, events).items() if in_row}
    rows = list(by_row)
    figure = figure_of(figsize=(14, 1.4 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    shown: dict[str, str] = {}
    for place, row in enumerate(rows):
        for name, colour in COLOURS.items():
            bars = [(e.start * _US, e.seconds * _US) for e in by_row[row] if colour_name(e) == name]
            if bars:
                shown[name] = colour
                axes.broken_barh(
                    bars, (place - 0.4, 0.8), facecolors=colour, edgecolors="white", linewidth=0.3
                )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, max(total_seconds, 1e-12) * _US)
    for layer in range(layers if layers > 1 else 0):
        start = layer / layers * total_seconds * _US
        axes.axvline(start, color="black", linestyle="--", linewidth=0.8)
        axes.annotate(
            f"layer {layer}",
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set_xlabel("microseconds (predicted)")
    axes.set_title(title, fontsize=11, pad=16)
    handles = [Patch(color=colour, label=label) for label, colour in shown.items()]
    if handles:
        axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    figure.savefig(path, dpi=120)


def save_trace(
    path: str | os.PathLike[str], process: str, rows: Sequence[str], events: Iterable[Event]
) -> None:
    """Writes the events in the Trace Event Format, complete events ("X") on one thread a row.

    Transfers that overlap on one link get threads of their own, since the events of a thread must nest.
    """
    trace: list[dict[str, object]] = [_metadata("process_name", 0, {"name": process})]
    for thread, (name, consecutive) in enumerate(threads(rows, events)):
        trace.append(_metadata("thread_name", thread, {"name": name}))
        trace.append(_metadata("thread_sort_index", thread, {"sort_index": thread}))
        trace += [_complete(event, thread) for event in consecutive]
    document = {"traceEvents": trace, "displayTimeUnit": "ns"}
    Path(path).write_text(json.dumps(document), encoding="utf-8")


def colour_name(event: Event) -> str:
    """The name in `COLOURS` of an event's colour."""
    return f"waiting for a {event.kind}" if event.row == STALL_ROW else event.kind


def threads(rows: Sequence[str], events: Iterable[Event]) -> Iterator[tuple[str, Sequence[Event]]]:
    """Names and events of all rows in order; a row whose events overlap becomes several, numbered."""
    for row, in_row in _by_row(rows, events).items():
        for place, consecutive in enumerate(_threads(in_row)):
            yield row if place == 0 else f"{row} ({place + 1})", consecutive


def _by_row(rows: Sequence[str], events: Iterable[Event]) -> dict[str, list[Event]]:
    """The events of all rows in order, also of rows without events."""
    by_row: dict[str, list[Event]] = {row: [] for row in rows}
    for event in events:
        by_row[event.row].append(event)
    return by_row


def _threads(events: Iterable[Event]) -> Sequence[Sequence[Event]]:
    """Splits events, sorted by start, into at least one list, so that no two of a list overlap."""
    threads: list[list[Event]] = [[]]
    for event in events:
        thread = next((t for t in threads if not t or t[-1].end <= event.start), None)
        if thread is None:
            thread = []
            threads.append(thread)
        thread.append(event)
    return threads


def _metadata(name: str, thread: int, args: Mapping[str, object]) -> dict[str, object]:
    return {"ph": "M", "pid": 0, "tid": thread, "name": name, "args": args}


def _complete(event: Event, thread: int) -> dict[str, object]:
    return {
        "ph": "X",
        "pid": 0,
        "tid": thread,
        "name": event.name,
        "cat": event.kind,
        "ts": event.start * _US,
        "dur": event.seconds * _US,
        "args": {"op_name": event.op_name, "bytes": event.bytes, "flops": event.flops},
    }
