"""Einsums of global arrays: which collectives their shardings ask for, and the shard_map."""
