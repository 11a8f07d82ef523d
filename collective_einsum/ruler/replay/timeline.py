"""The result of a replay: events on rows, their sums, and a table of these."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping

from collective_einsum.ruler.replay import timeline_files as drawing
from collective_einsum.ruler.replay.collective_overlaps import (
    CollectiveOverlap,
    collective_overlaps,
    overlap_table,
)
from collective_einsum.ruler.replay.events import COMPUTE_ROW, DMA_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.intervals import Intervals
from collective_einsum.ruler.replay.source_lines import LineSeconds, by_line, line_table
from collective_einsum.ruler.replay.summary_tables import times_table, traffic_table
from collective_einsum.ruler.replay.tables import Table, wrapped
from collective_einsum.ruler.replay.timeline_page import save_page

_LINES = "Source lines"


@dataclasses.dataclass(frozen=True)
class Timeline:
    """One chip of an SPMD program, replayed: a prediction, not a measurement.

    Attributes:
      name: name of the HLO module.
      chip: name of the chip.
      total_seconds: from start to end.
      hbm_bytes: bytes read from and written to HBM.
      hbm_bandwidth: bytes/s of the chip's HBM.
      peak_flops: bf16 flop/s of the chip.
      link_bandwidth: bytes/s of a link of every axis and direction that the torus has, by its name.
      events: in order of their start.
      notes: the assumptions that the replay made, a sentence each.
    """

    name: str
    chip: str
    total_seconds: float
    hbm_bytes: float
    hbm_bandwidth: float
    peak_flops: float
    link_bandwidth: Mapping[str, float]
    events: tuple[Event, ...]
    notes: tuple[str, ...] = ()

    def _seconds(self, *kinds: str) -> float:
        return sum(
            e.seconds for e in self.events if e.kind in kinds and e.row in (COMPUTE_ROW, STALL_ROW)
        )

    @functools.cached_property
    def compute_seconds(self) -> float:
        """Seconds in which the chip computes, dots included."""
        return self._seconds("dot", "compute")

    @functools.cached_property
    def dot_seconds(self) -> float:
        """Seconds in ops that contain a dot or a convolution."""
        return self._seconds("dot")

    @functools.cached_property
    def communication_seconds(self) -> float:
        """Seconds in which at least one transfer between chips is under way, hops included."""
        return Intervals(
            (e.start, e.arrival or e.end)
            for e in self.events
            if e.kind in ("permute", "collective")
        ).length

    @functools.cached_property
    def exposed_by_op(self) -> Mapping[str, float]:
        """Seconds in which the chip waits for a transfer between chips, by instruction."""
        return self._waiting("collective")

    @functools.cached_property
    def dma_stall_by_op(self) -> Mapping[str, float]:
        """Seconds in which the chip waits for its own memory, by instruction."""
        return self._waiting("copy")

    def _waiting(self, kind: str) -> Mapping[str, float]:
        """Seconds of the stalls of one kind, by instruction; the longest first."""
        seconds: dict[str, float] = {}
        for event in self.events:
            if event.row == STALL_ROW and event.kind == kind:
                seconds[event.name] = seconds.get(event.name, 0.0) + event.seconds
        return dict(sorted(seconds.items(), key=lambda item: -item[1]))

    def stalls(self, name: str) -> tuple[Event, ...]:
        """The events in which the chip waits for one instruction."""
        return tuple(e for e in self.events if e.row == STALL_ROW and e.name == name)

    @property
    def exposed_seconds(self) -> float:
        """Seconds in which the chip waits for communication."""
        return sum(self.exposed_by_op.values())

    @property
    def hidden_fraction(self) -> float:
        """The fraction of communication that overlaps with compute; 1 if there is no communication."""
        return (
            1 - self.exposed_seconds / self.communication_seconds
            if self.communication_seconds
            else 1.0
        )

    @functools.cached_property
    def link_bytes(self) -> Mapping[str, float]:
        """Bytes over the most loaded link of each axis and direction; 0 where one is idle."""
        return {link: sum(e.bytes for e in self.events if e.row == link) for link in self.links}

    @functools.cached_property
    def link_busy_seconds(self) -> Mapping[str, float]:
        """Seconds in which each axis and direction has a transfer."""
        return {
            link: Intervals((e.start, e.end) for e in self.events if e.row == link).length
            for link in self.links
        }

    @functools.cached_property
    def link_occupancy(self) -> Mapping[str, float]:
        """`link_bytes` of each axis and direction, over what its link could carry in `total_seconds`."""
        total = self.total_seconds or 1.0
        return {
            link: moved / self.link_bandwidth[link] / total
            for link, moved in self.link_bytes.items()
        }

    @property
    def hbm_occupancy(self) -> float:
        """`hbm_bytes` over what HBM could carry in `total_seconds`."""
        return self.hbm_bytes / self.hbm_bandwidth / (self.total_seconds or 1.0)

    @property
    def sent_bytes(self) -> float:
        """Bytes that a chip sends over all its links, those that it forwards included."""
        return sum(self.link_bytes.values())

    @functools.cached_property
    def dma_bytes(self) -> float:
        """Bytes of HBM traffic by asynchronous copies."""
        return sum(e.bytes for e in self.events if e.row == DMA_ROW)

    @functools.cached_property
    def flops(self) -> float:
        """Floating-point (or integer) operations of the dots on this chip."""
        return sum(e.flops for e in self.events)

    @property
    def mfu(self) -> float:
        """`flops` over the chip's bf16 peak times `total_seconds`."""
        return self.flops / (self.peak_flops * self.total_seconds) if self.total_seconds else 0.0

    def by_line(self, callers: int = 0) -> tuple[LineSeconds, ...]:
        """The seconds of each source line of the caller's program, the longest first.

        Args:
          callers: how many calls that led to a line distinguish it from the same line called elsewhere,
            such as a matmul in a function that all layers call.
        """
        return by_line(self.events, callers)

    def collectives(self) -> tuple[CollectiveOverlap, ...]:
        """What every collective overlaps, the one that the chip waits longest for first."""
        return collective_overlaps(self.events)

    def permutes_in_flight_during_dots(self) -> Mapping[str, float]:
        """Seconds in which each collective-permute overlaps with a dot, by name; permutes that never do
        are left out."""
        dots = Intervals((e.start, e.end) for e in self.events if e.kind == "dot")
        permutes = {
            (e.name, e.start): e.end
            for e in self.events
            if e.kind == "permute" and e.row != STALL_ROW
        }
        seconds: dict[str, float] = {}
        for (name, start), end in permutes.items():
            if shared := dots.covered(start, end):
                seconds[name] = seconds.get(name, 0.0) + shared
        return seconds

    def save_png(self, path: str | os.PathLike[str], *, title: str = "", layers: int = 1) -> None:
        """Draws the rows that have events: compute, stalls, axes and directions, DMA.

        Args:
          path: name of the PNG file.
          title: text above the picture; by default, the module's name.
          layers: number of equal layers in the program; their boundaries are marked.

        Raises:
          ModuleNotFoundError: matplotlib is not installed.
        """
        text = (
            f"{title or self.name} on {self.chip}\n{self.total_seconds * 1e6:.1f} us, "
            f"MFU {self.mfu:.1%}, {self.exposed_seconds * 1e6:.1f} us of communication exposed"
        )
        drawing.save_png(path, text, self.rows, self.events, self.total_seconds, layers)

    def save_trace(self, path: str | os.PathLike[str]) -> None:
        """Writes Chrome trace JSON, which ui.perfetto.dev opens; 1 us there is 1 us of the chip."""
        drawing.save_trace(path, self.chip, self.rows, self.events)

    def save_html(self, path: str | os.PathLike[str], *, title: str = "") -> None:
        """Writes one HTML page: the timeline to zoom, the tables of `print`, and every source line with
        its text. It needs no network.

        Args:
          path: name of the HTML file.
          title: the heading; by default, the module's name.
        """
        save_page(
            path,
            title=f"{title or self.name} on {self.chip}, replayed (predicted)",
            summary=self.summary,
            rows=self.rows,
            events=self.events,
            total_seconds=self.total_seconds,
            tables={name: table for name, table in self.tables().items() if name != _LINES},
            lines=self.by_line(),
            notes=self.notes,
        )

    @property
    def links(self) -> tuple[str, ...]:
        """Names of all axes and directions that the torus has."""
        return tuple(self.link_bandwidth)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, from top to bottom."""
        return (COMPUTE_ROW, STALL_ROW, *self.links, DMA_ROW)

    def tables(self) -> Mapping[str, Table]:
        """The tables that `print` shows, by their titles; those that would be empty are left out."""
        tables = {"Time": self._times(), "Bytes": self._traffic()}
        if rows := self.collectives():
            tables["What every collective overlaps"] = overlap_table(rows)
        lines = self.by_line(callers=1)
        if any(row.line for row in lines):
            tables[_LINES] = line_table(lines, self.total_seconds)
        return tables

    @property
    def summary(self) -> str:
        """The work of a chip in one sentence: flops, bytes, and how near they come to its peaks."""
        return (
            f"A chip makes {self.flops:.4g} flops (MFU {self.mfu:.1%}: of its bf16 peak in the total), "
            f"reads and writes {self.hbm_bytes / 1e6:.2f} MB of HBM ({self.hbm_occupancy:.1%} of its "
            f"bandwidth), and sends {self.sent_bytes / 1e6:.2f} MB over its links."
        )

    def _times(self) -> Table:
        seconds = {
            "total": self.total_seconds,
            "compute": self.compute_seconds,
            "  dots": self.dot_seconds,
            "communication": self.communication_seconds,
            "  exposed": self.exposed_seconds,
            "waiting for HBM copies": sum(self.dma_stall_by_op.values()),
        }
        return times_table(seconds, self.total_seconds)

    def _traffic(self) -> Table:
        links = {
            link: (self.link_bytes[link], busy, self.link_occupancy[link])
            for link, busy in self.link_busy_seconds.items()
        }
        return traffic_table((self.hbm_bytes, self.hbm_occupancy), links, self.total_seconds)

    def __str__(self) -> str:
        lines = [f"{self.name} on {self.chip}, replayed (predicted)", "", *wrapped(self.summary)]
        for title, table in self.tables().items():
            lines += ["", f"{title}:", "", str(table)]
        if self.notes:
            lines.append("")
        return "\n".join([*lines, *("\n".join(wrapped(f"note: {note}")) for note in self.notes)])
