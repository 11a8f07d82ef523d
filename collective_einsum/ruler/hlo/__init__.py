"""Reading compiled HLO: shapes, instructions, trip counts, flops, bytes and transfers."""

from .stack_frames import SourceLine as SourceLine
from .traffic import sent_bytes as sent_bytes

__all__ = ["SourceLine", "sent_bytes"]
