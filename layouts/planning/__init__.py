"""The choice of a partitioning: the planner, its table, the defaults, and the sweep over batches."""
