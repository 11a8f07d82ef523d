"""The result of a replay: events on rows, their sums, and a table of these."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping

from collective_einsum.ruler.replay import timeline_files as drawing
from collective_einsum.ruler.replay.events import COMPUTE_ROW, DMA_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.source_lines import LineSeconds, by_line, print_lines
from collective_einsum.ruler.replay.tables import legend, table

_MEANINGS = {
    "total": "from start to end",
    "compute": "the chip computes; dots: in ops that contain a dot",
    "communication": "at least one transfer between chips is under way",
    "exposed": "the chip waits for such a transfer",
    "share": "of the total",
    "MFU": "flops over the chip's bf16 peak for the total",
    "link": "an axis of the slice's torus and a direction",
    "MB": "over its most loaded link",
    "busy us": "it has a transfer",
    "exposed by": "the instructions that the chip waits longest for",
}


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
      links: names of all axes and directions that the torus has.
      events: in order of their start.
      notes: the assumptions that the replay made, a sentence each.
    """

    name: str
    chip: str
    total_seconds: float
    hbm_bytes: float
    hbm_bandwidth: float
    peak_flops: float
    links: tuple[str, ...]
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
        return sum(
            end - start
            for start, end in _union(
                (e.start, e.arrival or e.end)
                for e in self.events
                if e.kind in ("permute", "collective")
            )
        )

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
            link: sum(
                end - start
                for start, end in _union((e.start, e.end) for e in self.events if e.row == link)
            )
            for link in self.links
        }

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

    def permutes_in_flight_during_dots(self) -> Mapping[str, float]:
        """Seconds in which each collective-permute overlaps with a dot, by name; permutes that never do
        are left out."""
        dots = _union((e.start, e.end) for e in self.events if e.kind == "dot")
        seconds: dict[str, float] = {}
        seen = set()
        for event in self.events:
            key = (event.name, event.start)
            if event.kind != "permute" or event.row == STALL_ROW or key in seen:
                continue
            seen.add(key)
            shared = sum(
                max(0.0, min(event.end, end) - max(event.start, start)) for start, end in dots
            )
            if shared > 0:
                seconds[event.name] = seconds.get(event.name, 0.0) + shared
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

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, from top to bottom."""
        return (COMPUTE_ROW, STALL_ROW, *self.links, DMA_ROW)

    def __str__(self) -> str:
        us = 1e6
        lines = [f"{self.name} on {self.chip}, replayed (predicted)"]
        rows = [
            ("total", self.total_seconds),
            ("compute", self.compute_seconds),
            ("  dots", self.dot_seconds),
            ("communication", self.communication_seconds),
            ("  exposed", self.exposed_seconds),
            ("waiting for HBM copies", sum(self.dma_stall_by_op.values())),
        ]
        total = self.total_seconds or 1.0
        lines.append(
            table(("", "us", "share"), [(n, f"{s * us:.2f}", f"{s / total:.1%}") for n, s in rows])
        )
        lines.append(
            f"flops {self.flops:.4g}, MFU {self.mfu:.1%}; HBM {self.hbm_bytes / 1e6:.2f} MB "
            f"({self.hbm_bytes / self.hbm_bandwidth / total:.1%} of its bandwidth)"
        )
        if self.links:
            lines.append(
                table(
                    ("link", "MB", "busy us", "share"),
                    [
                        (
                            link,
                            f"{self.link_bytes[link] / 1e6:.3f}",
                            f"{busy * us:.2f}",
                            f"{busy / total:.1%}",
                        )
                        for link, busy in self.link_busy_seconds.items()
                    ],
                )
            )
        if self.exposed_by_op:
            lines.append(
                table(
                    ("exposed by", "us"),
                    [(n, f"{s * us:.2f}") for n, s in list(self.exposed_by_op.items())[:10]],
                )
            )
        lines += ["", legend(_MEANINGS, "Rows and columns")]
        rows = self.by_line(callers=1)
        if any(row.line for row in rows):
            lines += ["", print_lines(rows, self.total_seconds)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def _union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The union of intervals, as intervals that do not overlap."""
    merged: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
