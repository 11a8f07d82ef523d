"""Transformer layouts built on collective einsums."""
