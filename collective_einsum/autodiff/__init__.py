"""The JAX primitives and their rules: how einsums with collectives differentiate and batch."""
