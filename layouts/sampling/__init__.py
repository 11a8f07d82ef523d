"""Sampling the next token from logits that are split over the vocabulary."""
