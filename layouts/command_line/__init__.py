"""`python -m layouts`: text from a checkpoint, its scores, and the planner's table."""
