"""The experts whose columns each chip has, in each feedforward layout."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ..mesh.axis_collectives import AXES, WEIGHT_AXES, Axes, size
from ..models.config import ModelConfig
from .feedforward_layout import FeedForwardLayout


class ExpertColumns(NamedTuple):
    """A chip's columns after `project_in`: blocks of one expert each, all equally long.

    Attributes:
      axes: over which columns are sharded.
      owners: the expert of each block, [*sizes of axes, blocks].
      width: columns of a block.
    """

    axes: Axes
    owners: np.ndarray
    width: int

    @property
    def are_apart(self) -> bool:
        """Whether no chip has two blocks of one expert."""
        ordered = np.sort(self.owners, axis=-1)
        return bool((np.diff(ordered, axis=-1) > 0).all())


def expert_columns(
    config: ModelConfig, layout: FeedForwardLayout, sizes: Mapping[str, int]
) -> ExpertColumns:
    """The columns of a chip, in blocks that are as long as can be.

    Args:
      config: a model with experts.
      layout: of the feedforward.
      sizes: of the mesh axes x, y and z.
    """
    return _expert_columns(config, layout, tuple(sizes[axis] for axis in AXES))


@functools.lru_cache(maxsize=256)
def _expert_columns(
    config: ModelConfig, layout: FeedForwardLayout, shape: tuple[int, int, int]
) -> ExpertColumns:
    sizes = dict(zip(AXES, shape, strict=True))
    have = layout.features(WEIGHT_AXES)
    scattered = tuple(axis for axis in have if axis not in WEIGHT_AXES)
    kept = tuple(axis for axis in WEIGHT_AXES if axis in have)
    joined = tuple(axis for axis in WEIGHT_AXES if axis not in have)
    shard = config.hidden_columns // size((*WEIGHT_AXES, *scattered), sizes)
    # Columns in units that no expert and no shard splits.
    unit = math.gcd(config.d_ff, shard)
    units = np.arange(config.hidden_columns // unit) * unit // config.d_ff
    units = units.reshape(*(sizes[axis] for axis in WEIGHT_AXES), -1)
    # Columns that are gathered over an axis lie one shard after another.
    units = units.transpose(*(WEIGHT_AXES.index(axis) for axis in (*kept, *joined)), -1)
    axes = (*kept, *scattered)
    units = units.reshape(*(sizes[axis] for axis in axes), -1)
    together = math.gcd(config.d_ff, units.shape[-1] * unit) // unit
    blocks = units.reshape(*units.shape[:-1], -1, together)
    if (blocks == blocks[..., :1]).all():
        return ExpertColumns(axes, blocks[..., 0], together * unit)
    return ExpertColumns(axes, units, unit)
