"""The attention layouts of "Efficiently Scaling Transformer Inference" (arXiv 2211.05102), section
3.3: by heads, or by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from ..mesh.axis_collectives import AXES, Axes


class AttentionLayout(Protocol):
    """Whether attention is sharded by heads or by batch."""

    @property
    def batch_axes(self) -> Axes:
        """The axes that shard the batch in attention, besides `FeedForwardLayout.inner_batch_axes`."""
        ...


@dataclasses.dataclass(frozen=True)
class HeadSharded:
    """Attention is sharded by heads: every chip attends with its own.

    Key-value heads are replicated where there are fewer of them than chips.
    """

    @property
    def batch_axes(self) -> Axes:
        """No axes."""
        return ()


@dataclasses.dataclass(frozen=True)
class BatchSharded:
    """Attention is sharded by batch: every chip attends for its own sequences, and key-value heads need
    no copies.

    One all-to-all moves queries from heads to batch, another moves results back (section 3.3).

    Attributes:
      axes: that shard the batch: ("z",), ("y", "z") or ("x", "y", "z"). Heads stay sharded over the
        other axes.

    Raises:
      ValueError: other axes.
    """

    axes: Axes = AXES

    def __post_init__(self) -> None:
        axes: object = (self.axes,) if isinstance(self.axes, str) else self.axes
        axes = tuple(axes) if isinstance(axes, Sequence) else axes
        if axes not in (("z",), ("y", "z"), AXES):
            raise ValueError(
                f'BatchSharded(axes={self.axes!r}): choose ("z",), ("y", "z") or ("x", "y", "z")'
            )
        object.__setattr__(self, "axes", axes)

    @property
    def batch_axes(self) -> Axes:
        """The attribute `axes`."""
        return self.axes
