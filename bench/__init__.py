"""What collective einsums cost: compiled for a target, replayed or timed."""

# What a compiled program, and its replay, are made from.
SOURCES = ("collective_einsum", "layouts", "bench")
