"""The mesh of a model: axis names, slices, collectives over its axes, entry to shard_map."""
