"""Compiling for a TPU slice without a TPU: targets, the cache of programs, worker processes."""
