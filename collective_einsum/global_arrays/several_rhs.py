"""Reads the arguments of an einsum whose right operand is a list: one einsum for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.sharding import PartitionSpec


def is_list(operand: Any) -> bool:
    """Whether an operand is a list of arrays, and no array written as a list of numbers."""
    if not isinstance(operand, list | tuple) or not operand:
        return False
    return all(
        hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, np.generic)
        for x in operand
    )


def each(
    text: str, operands: Sequence[Any], in_specs: Any, out_sharding: Any
) -> list[tuple[Any, Any, Any]]:
    """The rhs, `in_specs` and `out_sharding` of every einsum.

    `in_specs` and `out_sharding` have one PartitionSpec for all rhs and results, or a list of them.

    Raises:
      ValueError: more than two operands, or lists of other lengths.
    """
    if len(operands) != 2 or is_list(operands[0]):
        raise ValueError(
            f"einsum {text!r}: a list of arrays stands for several rhs, behind one lhs, and there are "
            f"{len(operands)} operands; call it once for each array of the list"
        )
    rights = operands[1]
    pairs = [None] * len(rights)
    if in_specs is not None:
        if isinstance(in_specs, PartitionSpec) or len(in_specs) != 2:
            raise ValueError(
                f"einsum {text!r}: in_specs must be a pair, the PartitionSpec of lhs and that of every "
                f"rhs, or a list of theirs; got {in_specs!r}"
            )
        left, right = in_specs
        pairs = [(left, spec) for spec in _for_all(text, "in_specs of rhs", right, len(rights))]
    outs = _for_all(text, "out_sharding", out_sharding, len(rights))
    return list(zip(rights, pairs, outs, strict=True))


def _for_all(text: str, name: str, given: Any, count: int) -> list[Any]:
    """One for each rhs."""
    if isinstance(given, PartitionSpec) or not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise ValueError(
            f"einsum {text!r}: {name} has {len(given)} entries for {count} rhs; give one for each, or "
            "one PartitionSpec for all"
        )
    return list(given)
