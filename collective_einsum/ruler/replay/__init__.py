"""Replaying a compiled schedule on the slice's torus: its timeline, and what it waits for."""
