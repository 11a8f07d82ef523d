"""Rings over mesh axes: steps, streams, several axes. The only callers of `lax.ppermute`."""

from .permutes import shift as shift
from .slicing import chunk_spans as chunk_spans
from .slicing import put_together as put_together
from .steps import together as together
from .streams import ring_directions as ring_directions

__all__ = ["chunk_spans", "put_together", "ring_directions", "shift", "together"]
