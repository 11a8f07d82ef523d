"""What the installed compiler makes of dots on a chip: compiled, counted, and written to a file."""
