"""Rings over mesh axes: steps, streams, several axes. The only callers of `lax.ppermute`."""

from .ring_steps import lanes as lanes
from .ring_steps import together as together
from .slicing import pieces_of as pieces_of
from .slicing import put_together as put_together

__all__ = ["lanes", "pieces_of", "put_together", "together"]
