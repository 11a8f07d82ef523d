"""A line of the paper's report: one published row with its predictions."""

from __future__ import annotations

import dataclasses

from bench.decoder_suite.steps import StepRow
from bench.paper.rows import Entry
from layouts.cost import Cost


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the report; seconds are those of a step's layers.

    Attributes:
      entry: the line's programs and its published figure.
      analytical: cost of the paper's layouts, without overlap, by the analytical model.
      blocking, best: replays; None where nothing was compiled.
    """

    entry: Entry
    analytical: Cost
    blocking: StepRow | None
    best: StepRow | None

    @property
    def published(self) -> float | None:
        """The paper's seconds."""
        return self.entry.published_seconds

    def seconds(self, which: str) -> float | None:
        """Seconds in the column "analytical", "blocking" or "best"; None where there are none."""
        if which == "analytical":
            return self.analytical.seconds
        row: StepRow | None = getattr(self, which)
        return None if row is None or row.refused else row.layers_seconds

    def error(self, which: str) -> float | None:
        """A column / the published figure - 1."""
        seconds = self.seconds(which)
        if seconds is None or self.published is None:
            return None
        return seconds / self.published - 1
