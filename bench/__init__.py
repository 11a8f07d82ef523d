"""Suites that time collective einsums and decoders: compiled and replayed, or run and timed."""
