"""The code that XLA:TPU issues, from its dumps: VLIW bundles, read and counted."""

from .count import Count as Count
from .count import count as count
from .dump import mark as mark
from .dump import start as start
from .dump import text_of as text_of
from .kernels import Kernel as Kernel
from .kernels import parse_kernel as parse_kernel

__all__ = ["Count", "Kernel", "count", "mark", "parse_kernel", "start", "text_of"]
