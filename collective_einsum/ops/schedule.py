"""The schedule of a collective einsum: a frozen value that says how its communication moves."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np
from jax.typing import DTypeLike

from ..text.messages import as_dtype, did_you_mean, nearest

Kind = Literal["blocking", "ring", "chunked"]
Direction = Literal["unidirectional", "bidirectional", "latency", "async"]
# The directions of a ring.
DIRECTIONS: tuple[Direction, ...] = ("unidirectional", "bidirectional", "latency")
# From this many devices on, an unrolled ring makes programs that take long to compile.
ROLL_FROM = 16
# Up to this many devices, a chunked schedule of one chunk scatters a result point to point: it sends
# the block for every other device at once.
POINT_TO_POINT_DEVICES = 16
# Up to this many devices, schedule="auto" makes an all-to-all of one permute for each of them.
PERMUTED_DEVICES = 64


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a collective einsum moves its data; hashable. All but `kind` and `direction` are keywords.

    Attributes:
      kind: "blocking" (lax's collective, then the einsum), "ring" (a dot for every hop of the ring),
        or "chunked" (a dimension split into `chunks`, whose collectives overlap with the dots of other
        chunks; with one chunk each of several results is scattered during the next one's dot).
      direction: of the ring. "unidirectional": full shards one way, n - 1 hops. "bidirectional":
        half a shard each way, n - 1 hops. "latency": full shards each way, n // 2 hops. And for
        "chunked" alone, "async": no ring, but lax's all-gather and all-to-all, for compilers that
        overlap these with compute; see `compiler_options`.
      chunks: how many chunks, for "chunked"; or their sizes in proportion, such as (1, 3), so that
        little is left to wait for at the start or the end.
      label: the einsum label that is split into chunks; None for the one that suits (see
        `choose_schedule`). The gathered label, if "async" and not summed over: every shard is then
        split, and the dot of the own shard waits for nothing.
      ring_of: for "ring" and an einsum with both collectives, the collective that is a ring, "gather"
        or "scatter"; the other one is then lax's own.
      wire_dtype: the dtype on the wire; None for that of the gathered operand, and for partial sums
        that of the result.
      rolled: whether the hops are a loop in the program, whose size then does not grow with the
        ring; None for rolled on rings of 16 and more.
    """

    kind: Kind = "ring"
    direction: Direction = "latency"
    _: dataclasses.KW_ONLY
    chunks: int | tuple[int, ...] = 1
    label: str | None = None
    ring_of: Literal["gather", "scatter"] = "scatter"
    wire_dtype: DTypeLike | None = None
    rolled: bool | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("blocking", "ring", "chunked"):
            raise ValueError(
                f"Schedule kind {self.kind!r} is not 'blocking', 'ring' or 'chunked'"
                f"{self._instead(self.kind, get_args(Kind))}"
            )
        known = (*DIRECTIONS, "async")
        if self.direction not in known:
            raise ValueError(
                f"Schedule direction {self.direction!r} is none of {known}"
                f"{did_you_mean(self.direction, known)}"
            )
        if self.direction == "async" and self.kind == "ring":
            raise ValueError(
                "Schedule(kind='ring', direction='async'): lax's own collective goes round no ring; "
                "use kind='chunked'"
            )
        proportions = self.chunks if isinstance(self.chunks, tuple) else (self.chunks,)
        proportions = tuple(int(n) if isinstance(n, np.integer) else n for n in proportions)
        if not proportions or not all(type(n) is int and n > 0 for n in proportions):
            raise ValueError(
                "Schedule chunks must be a positive integer, or a tuple of such for chunks of these "
                f"proportions, got {self.chunks!r}"
            )
        # One spelling of everything, so that equal schedules hash alike.
        chunks = proportions if isinstance(self.chunks, tuple) else proportions[0]
        object.__setattr__(self, "chunks", chunks)
        if self.label is not None and (not isinstance(self.label, str) or len(self.label) != 1):
            raise ValueError(
                f"Schedule label {self.label!r} is no label of an einsum; give one letter, or None"
            )
        if self.rolled is not None and not isinstance(self.rolled, bool | np.bool_):
            raise ValueError(f"Schedule rolled={self.rolled!r} must be True, False or None")
        if self.kind != "chunked" and (self.chunks != 1 or self.label is not None):
            raise ValueError(
                f"Schedule(kind={self.kind!r}, chunks={self.chunks}, label={self.label!r}): only "
                "kind='chunked' splits into chunks"
            )
        if self.ring_of not in ("gather", "scatter"):
            raise ValueError(
                f"Schedule ring_of={self.ring_of!r} is neither 'gather' nor 'scatter'"
                f"{did_you_mean(self.ring_of, ('gather', 'scatter'))}"
            )
        if self.wire_dtype is not None:
            object.__setattr__(self, "wire_dtype", as_dtype("wire_dtype", self.wire_dtype))
        if self.rolled is not None:
            object.__setattr__(self, "rolled", bool(self.rolled))

    @staticmethod
    def _instead(kind: str, kinds: tuple[str, ...]) -> str:
        """The end of a message about a kind that there is not."""
        if kind in (*DIRECTIONS, "async"):
            named = NAMED[kind]
            return f", but a direction; write Schedule({named.kind!r}, {kind!r})"
        return did_you_mean(kind, kinds)

    @property
    def proportions(self) -> tuple[int, ...]:
        """The sizes of the chunks, in proportion."""
        return self.chunks if isinstance(self.chunks, tuple) else (1,) * self.chunks

    def rolls(self, n: int) -> bool:
        """Whether a ring of `n` devices is a loop in the program."""
        return n >= ROLL_FROM if self.rolled is None else self.rolled

    def __str__(self) -> str:
        parts = [self.direction if self.kind == "ring" else self.kind]
        if self.kind == "chunked":
            over = f" over {self.label!r}" if self.label else ""
            chunks = (
                self.chunks if isinstance(self.chunks, int) else "+".join(map(str, self.chunks))
            )
            parts.append(f"{chunks}{over}, {self.direction}")
        if self.kind == "ring" and self.ring_of == "gather":
            parts.append("of the gather")
        if self.wire_dtype is not None:
            parts.append(f"{self.wire_dtype} wire")
        if self.rolled is not None:
            parts.append("rolled" if self.rolled else "unrolled")
        return ", ".join(parts).replace("chunked, ", "chunked ")


NAMED: dict[str, Schedule] = {
    "blocking": Schedule("blocking"),
    "unidirectional": Schedule("ring", "unidirectional"),
    "bidirectional": Schedule("ring", "bidirectional"),
    "latency": Schedule("ring", "latency"),
    "chunked": Schedule("chunked", chunks=4),
    "async": Schedule("chunked", "async"),
}


def as_schedule(schedule: str | Schedule) -> Schedule | None:
    """A name or value as a Schedule; None for "auto".

    Raises:
      ValueError: neither, or a name that no schedule has.
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule == "auto":
        return None
    if isinstance(schedule, str) and schedule in NAMED:
        return NAMED[schedule]
    hint = did_you_mean(schedule, ("auto", *NAMED))
    if nearest(schedule, get_args(Kind)) == "ring":
        hint = "('ring')"
    raise ValueError(
        f"schedule={schedule!r} is unknown; choose 'auto', one of {tuple(NAMED)!r}, or pass a "
        f"Schedule{hint}"
    )
