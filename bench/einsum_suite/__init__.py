"""Suite of einsums with a collective: cases, compile tasks, measures and the report."""
