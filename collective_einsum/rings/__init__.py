"""Rings over mesh axes: steps, streams, several axes. The only callers of `lax.ppermute`."""
