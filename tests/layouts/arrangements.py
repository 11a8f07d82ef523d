"""The meshes and layouts that the tests of this folder go through."""

from __future__ import annotations

from layouts import (
    BatchSharded,
    HeadSharded,
    WeightGathered,
    WeightStationary1D,
    WeightStationary2D,
)

MESHES = ((2, 2, 2), (4, 2, 1), (1, 1, 8), (1, 1, 1))
FEEDFORWARDS = (
    WeightStationary1D(),
    WeightStationary2D(),
    WeightStationary2D(by_batch=True),
    WeightStationary2D(by_batch=True, all_reduce=True),
    WeightGathered(("x",)),
    WeightGathered(("x", "y")),
    WeightGathered(("x", "y", "z")),
)
# For prompts, and with heads sharded.
BY_POSITION = WeightStationary2D(by_position=True)
ATTENTIONS = (
    HeadSharded(),
    BatchSharded(("z",)),
    BatchSharded(("y", "z")),
    BatchSharded(("x", "y", "z")),
)
