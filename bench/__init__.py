"""What collective einsums cost: compiled for a target and replayed, or run and timed."""
