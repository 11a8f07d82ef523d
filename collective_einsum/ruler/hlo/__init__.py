"""Reading compiled HLO: shapes, instructions, trip counts, and what each one costs."""
