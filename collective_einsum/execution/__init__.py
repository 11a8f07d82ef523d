"""The schedules as traced JAX code, inside shard_map. Knows no cost."""
