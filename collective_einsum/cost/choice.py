"""The ranked schedules of an einsum and the reason of the choice, as a value that prints as a table."""

from __future__ import annotations

import dataclasses

from ..ops.schedule import Schedule
from ..text.showing import Shown
from .workload import Estimate

# The least predicted gain over "blocking", as a fraction, for which schedule="auto" leaves it: smaller
# ones are within the error of the cost model.
WORTHWHILE = 0.015
# The same where chunks of dots widen int8 or fp8 weights, whose cost is known less well: [512, 4608] x
# [4608, 18432] on v5e, gathered over 4, was predicted 3% faster in two chunks than "blocking" and is
# replayed 11% slower; [512, 18432] x [18432, 4608] on v6e, scattered over 4, 8% faster and 12% slower
# (`python -m bench collectives --full --target v5e:4x4` and v6e:4x4, libtpu 0.0.50.1). It is not for an
# all-gather's ring of whole shards, whose dots were observed; but it is where parts of tiles of lanes
# are gathered over several axes: [256, 4608] x [4608, 4608] on v4 was predicted 2% faster so and is
# replayed 9% slower.
WORTHWHILE_WIDENED = 0.08

# Below the table that a `Choice` prints.
LEGEND = (
    "total = compute + exposed; exposed: communication that overlaps with no compute; "
    "extra MB: temporary arrays"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice(Shown):
    """The schedules of one einsum with their predicted costs; prints as a table.

    Attributes:
      einsum: the einsum, its local shapes and its collectives, in words.
      chip: the chip's name.
      rows: an `Estimate` for each schedule, the chosen one first, the others by their seconds.
      worthwhile: the gain over "blocking", as a fraction, for which the fastest one would be chosen.
    """

    einsum: str
    chip: str
    rows: tuple[Estimate, ...]
    worthwhile: float = WORTHWHILE

    @property
    def schedule(self) -> Schedule:
        """The chosen schedule."""
        return self.rows[0].schedule

    @property
    def blocking(self) -> Estimate:
        """The estimate of "blocking", which is always among them."""
        return next(row for row in self.rows if row.schedule.kind == "blocking")

    @property
    def reason(self) -> str:
        """The reason of the choice, in a sentence."""
        best, blocking = self.rows[0], self.blocking
        fastest = min(self.rows, key=lambda row: row.seconds)
        if best is blocking and fastest is blocking:
            return "no schedule hides more communication than its extra dots and memory passes cost"
        if best is blocking:
            return (
                f"{fastest.schedule} would gain {blocking.seconds / fastest.seconds - 1:.1%}, less than "
                f"the {self.worthwhile:.1%} for which it leaves blocking"
            )
        return (
            f"{blocking.seconds / best.seconds:.2f} times faster than blocking: it leaves "
            f"{best.exposed * 1e6:.1f} of {blocking.exposed * 1e6:.1f} us exposed"
        )

    def __repr__(self) -> str:
        best = self.rows[0]
        return (
            f"Choice({best.schedule}, {best.seconds * 1e6:.1f} us, of {len(self.rows)} schedules of "
            f"{self.einsum} on {self.chip})"
        )

    def __str__(self) -> str:
        width = max(len(str(row.schedule)) for row in self.rows)
        lines = [
            f"{self.einsum} on {self.chip}, predicted by the cost model",
            f"{'schedule':{width}}  total us  compute us  communication us  exposed us  extra MB",
        ]
        for row in self.rows:
            lines.append(
                f"{row.schedule!s:{width}}  {row.seconds * 1e6:8.1f}  {row.compute * 1e6:10.1f}  "
                f"{row.communication * 1e6:16.1f}  {row.exposed * 1e6:10.1f}  "
                f"{row.memory / 1e6:8.2f}"
            )
        lines += [LEGEND, f"chosen: {self.schedule}, since {self.reason}"]
        return "\n".join(lines)
