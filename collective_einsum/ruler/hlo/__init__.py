"""Reading compiled HLO: shapes, instructions, trip counts, and what each one costs."""

from .traffic import sent_bytes as sent_bytes

__all__ = ["sent_bytes"]
