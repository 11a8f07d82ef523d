"""The schedules as traced JAX code, inside shard_map. Knows no cost."""

from .product import product as local_product

__all__ = ["local_product"]
