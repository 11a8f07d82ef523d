"""What collective einsums cost: compiled for a target, replayed or timed."""
