"""Predicted seconds of every schedule, and the choice of the cheapest. Executes nothing."""
