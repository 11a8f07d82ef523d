"""Figures that others measured on TPUs, as data, and how far the ruler's predictions are from them."""
