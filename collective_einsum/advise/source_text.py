"""Values as a user writes them in Python, for the calls that `advise` names."""

from __future__ import annotations

import numpy as np
from jax import lax
from jax.sharding import PartitionSpec


def source_text(value: object) -> str:
    """The Python text of an argument; `jax` is imported, and `P` is `jax.sharding.PartitionSpec`."""
    match value:
        case PartitionSpec():
            return f"P({', '.join(map(source_text, value))})"
        case lax.Precision() | lax.DotAlgorithmPreset():
            return f"jax.lax.{type(value).__name__}.{value.name}"
        case (lax.Precision() as lhs, lax.Precision() as rhs) if lhs == rhs:
            return source_text(lhs)
        case tuple():
            return f"({', '.join(map(source_text, value))}{',' if len(value) == 1 else ''})"
        case np.dtype():
            return repr(value.name)
    return repr(value)
