"""Einsum specs, sizes, dtypes and quantized operands: plain data and their checks."""
