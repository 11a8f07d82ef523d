"""Sampling the next token from logits that are split over the vocabulary."""

from .sampling import Sampling as Sampling
from .sampling import sample as sample

__all__ = ["Sampling", "sample"]
