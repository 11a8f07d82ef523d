"""Events: spans of time in which a replayed chip computes, sends or waits, on rows of its timeline."""

from __future__ import annotations

import dataclasses

from collective_einsum.ruler.hlo.stack_frames import SourceLine

COMPUTE_ROW, STALL_ROW, DMA_ROW = "compute", "stall", "dma"


@dataclasses.dataclass(frozen=True)
class Event:
    """A span of time on one row of a timeline, in seconds from the start of the program.

    `row` is "compute", "stall", "dma", or the name of an axis and direction such as "x+"; `kind` is
    "dot", "compute", "collective", "permute", "copy" or "stall". `bytes` are the bytes that move over
    the link or to and from HBM. `arrival` is when the last byte of a transfer has passed its hops.
    `lines` are the caller's source lines that the instruction was traced from, the innermost first.
    `op` is the opcode of the instruction; of a transfer, what it runs, such as "all-gather" or "copy".
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
    lines: tuple[SourceLine, ...] = ()
    op: str = ""

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return self.end - self.start

    def shifted(self, seconds: float) -> Event:
        """The same event, that many seconds later."""
        return dataclasses.replace(
            self,
            start=self.start + seconds,
            end=self.end + seconds,
            arrival=None if self.arrival is None else self.arrival + seconds,
        )
