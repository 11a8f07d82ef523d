"""Chips: their figures, how a device is recognized, and the compiler options they get."""
