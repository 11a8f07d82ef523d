"""The decoder: prefill, decode steps, generation, their initial state and lowered programs."""

from .compiled_step import Program as Program
from .compiled_step import Work as Work

__all__ = ["Program", "Work"]
