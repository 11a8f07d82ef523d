"""The JAX primitive of einsums and collectives, and how each kind of op differentiates and batches."""

# Imported for the rules that they register.
from . import collective_rules as collective_rules
from . import einsum_rules as einsum_rules
