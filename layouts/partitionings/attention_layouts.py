"""The attention layouts of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), section
3.3: by heads, or by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from ..mesh.axis_collectives import AXES, Axes


class AttentionLayout(Protocol):
    """Whether attention shards heads or batch."""

    @property
    def batch_axes(self) -> Axes:
        """The axes over which the batch is sharded, beside those of the feedforward layout inside."""
        ...


@dataclasses.dataclass(frozen=True)
class HeadSharded:
    """Every chip attends with its own heads.

    Shared key-value heads are replicated where there are fewer of them than chips.
    """

    @property
    def batch_axes(self) -> Axes:
        """None."""
        return ()


@dataclasses.dataclass(frozen=True)
class BatchSharded:
    """Every chip attends for its own sequences, so that shared key-value heads need no copies.

    Queries go from heads to batch by an all-to-all, and results back by another (section 3.3).

    Attributes:
      axes: ("z",), ("y", "z") or ("x", "y", "z"): over which the batch is sharded. Heads stay
        sharded over the others.
    """

    axes: Axes = AXES

    def __post_init__(self) -> None:
        given: Any = (self.axes,) if isinstance(self.axes, str) else self.axes
        given = tuple(given) if isinstance(given, Sequence) else given
        if given not in (("z",), ("y", "z"), AXES):
            raise ValueError(
                f'BatchSharded(axes={self.axes!r}): choose ("z",), ("y", "z") or ("x", "y", "z")'
            )
        object.__setattr__(self, "axes", given)

    @property
    def batch_axes(self) -> Axes:
        """As given."""
        return self.axes
