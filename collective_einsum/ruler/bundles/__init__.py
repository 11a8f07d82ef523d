"""The code that XLA:TPU issues, from its dumps: VLIW bundles, read and counted."""

from .count import Count as Count
from .count import count as count
from .kernels import Kernel as Kernel
from .kernels import parse_kernel as parse_kernel

__all__ = ["Count", "Kernel", "count", "parse_kernel"]
