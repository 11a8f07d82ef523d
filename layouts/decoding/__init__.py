"""The decoder: prefill, decode steps, generation, their initial state and lowered programs."""

from .compiled_step import Program as Program

__all__ = ["Program"]
