"""Reading compiled HLO: shapes, instructions, trip counts, flops, bytes and transfers."""

from .instruction_cost import estimated_cycles as estimated_cycles
from .traffic import sent_bytes as sent_bytes

__all__ = ["estimated_cycles", "sent_bytes"]
