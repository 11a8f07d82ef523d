"""The analytical model: predicted seconds and bytes of a step under a partitioning."""

from .memory import cache_bytes as cache_bytes
from .step_cost import Cost as Cost
from .step_cost import Load as Load
from .step_cost import cost as cost
from .step_cost import load as load

__all__ = ["Cost", "Load", "cache_bytes", "cost", "load"]
