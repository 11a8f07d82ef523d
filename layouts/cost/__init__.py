"""The analytical model: predicted seconds and bytes of a step under a partitioning."""

from .layer_items import Load as Load
from .memory import cache_bytes as cache_bytes
from .step_cost import Cost as Cost
from .step_cost import cost as cost
from .two_part_cost import TokenShardedFeedForward as TokenShardedFeedForward
from .two_part_cost import split_seconds as split_seconds
from .workload import load as load

__all__ = [
    "Cost",
    "Load",
    "TokenShardedFeedForward",
    "cache_bytes",
    "cost",
    "load",
    "split_seconds",
]
