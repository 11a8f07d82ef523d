"""The decoder: prefill, decode steps, generation, their initial state and lowered programs."""
