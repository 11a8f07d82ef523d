"""Something that a replayed chip does or waits for, on a row of its timeline."""

from __future__ import annotations

import dataclasses

COMPUTE_ROW, STALL_ROW, DMA_ROW = "compute", "stall", "dma"


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that takes time, in seconds from the start.

    `row` is "compute", "stall", "dma", or the name of an axis and direction such as "x+"; `kind` is
    "dot", "compute", "collective", "permute", "copy" or "stall". `bytes` are those that move over
    the link or to and from HBM. `arrival` is when the last byte of a transfer has passed its hops.
    """

    row: str
    name: str
    start: float
    end: float
    kind: str
    op_name: str = ""
    bytes: float = 0.0
    arrival: float | None = None
    flops: float = 0.0

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end - self.start

    def shifted(self, seconds: float) -> Event:
        """The same event, later."""
        return dataclasses.replace(
            self,
            start=self.start + seconds,
            end=self.end + seconds,
            arrival=None if self.arrival is None else self.arrival + seconds,
        )
