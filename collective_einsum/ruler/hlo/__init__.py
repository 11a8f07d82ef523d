"""Reading compiled HLO: shapes, instructions, trip counts, flops, bytes and transfers."""

from .instruction_cost import estimated_cycles as estimated_cycles
from .stack_frames import SourceLine as SourceLine
from .traffic import sent_bytes as sent_bytes

__all__ = ["SourceLine", "estimated_cycles", "sent_bytes"]
