"""How many tokens an expert, or a chip with experts, takes at a time where each expert is multiplied
with its own tokens only."""

from __future__ import annotations

import math
from typing import NamedTuple

from .. import tuning
from .mesh_fit import round_up


class ExpertRooms(NamedTuple):
    """Rows of the arrays of a round; what does not fit is left to further rounds.

    Attributes:
      expert: of each expert of a chip.
      chip: that a chip sends to each chip with experts; None if tokens are not sent to their experts.
    """

    expert: int
    chip: int | None = None

    @property
    def dispatches(self) -> bool:
        """Whether tokens are sent to the chips that have their experts."""
        return self.chip is not None


def room_for(rows: float, most: int) -> int:
    """Rows of room where a router that likes all experts alike chooses `rows` on average, and `most` at
    most: the average and `tuning.ROOM_DEVIATIONS` standard deviations, in tiles."""
    room = math.ceil(rows + tuning.ROOM_DEVIATIONS * math.sqrt(rows))
    return min(round_up(room, tuning.ROOM_TILE), round_up(most, tuning.ROOM_TILE))
