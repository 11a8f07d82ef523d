"""What stands between a collective and a dot in a jaxpr, done to a shard instead of the unsharded array.

Transposes, conversions and reshapes commute with a gather or a scatter of a dimension as long as its
shards stay contiguous.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from jax import lax

from .jaxprs import JaxprEqn, type_of

_TRANSPOSE, _CONVERT = "transpose", "convert_element_type"
# They change how an array is shaped, and no value: of (shape before, shape after, places of dimensions).
_RESHAPES = ("reshape", "squeeze", "expand_dims", "broadcast_in_dim")
# They change types alone.
_TYPES = ("pvary", "pcast", "copy", "copy_p", "name", "optimization_barrier")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """An op on an array, and how a user writes it after the array's name."""

    text: str
    apply: Callable[[Any], Any]


def is_step(eqn: JaxprEqn) -> bool:
    """Whether an equation only moves or converts the elements of an array."""
    name = eqn.primitive.name
    if name in _RESHAPES:
        (before,), (after,) = _shapes(eqn.invars[:1]), _shapes(eqn.outvars)
        if name == "reshape" and eqn.params.get("dimensions") is not None:
            return False
        if name == "broadcast_in_dim":
            places = eqn.params["broadcast_dimensions"]
            return math.prod(before) == math.prod(after) and sorted(places) == list(places)
        return True
    return name in (_TRANSPOSE, _CONVERT, *_TYPES) and len(eqn.invars) == 1


def after_gather(eqn: JaxprEqn, dim: int, count: int) -> tuple[Step, int] | None:
    """The step on a shard in place of one on the array that `count` of them, gathered in `dim`, are.

    Returns:
      The step, and which dimension to gather after it; None where shards do not stay contiguous.
    """
    (before,), (after,) = _shapes(eqn.invars[:1]), _shapes(eqn.outvars)
    if eqn.primitive.name == _TRANSPOSE:
        moved = eqn.params["permutation"].index(dim)
    elif eqn.primitive.name in _RESHAPES:
        moved = _moved(before, after, dim, count)
    else:
        moved = dim
    return None if moved is None else (_on_shard(eqn, moved, count), moved)


def before_scatter(eqn: JaxprEqn, dim: int, count: int) -> tuple[Step, int] | None:
    """The step on a block in place of one on the array that is scattered over `count` devices in `dim`.

    Returns:
      The step, and which dimension to scatter before it; None where blocks do not stay contiguous.
    """
    (before,), (after,) = _shapes(eqn.invars[:1]), _shapes(eqn.outvars)
    if eqn.primitive.name == _TRANSPOSE:
        moved = eqn.params["permutation"][dim]
    elif eqn.primitive.name in _RESHAPES:
        moved = _moved(after, before, dim, count)
    else:
        moved = dim
    return None if moved is None else (_on_shard(eqn, dim, count), moved)


def unchanged(eqn: JaxprEqn) -> Step:
    """The step as it is."""
    return _on_shard(eqn, None, 1)


def reshaped(shape: Sequence[int]) -> Step:
    """A reshape."""
    sizes = tuple(shape)
    return Step(text=f".reshape{sizes}", apply=lambda x: lax.reshape(x, sizes))


def _on_shard(eqn: JaxprEqn, dim: int | None, count: int) -> Step:
    """The step on a shard, of which `count` in dimension `dim` of the result are the array."""
    if eqn.primitive.name in _RESHAPES:
        (after,) = _shapes(eqn.outvars)
        return reshaped([n // count if i == dim else n for i, n in enumerate(after)])
    text = ""
    if eqn.primitive.name == _TRANSPOSE:
        text = f".transpose{tuple(eqn.params['permutation'])}"
    elif eqn.primitive.name == _CONVERT:
        text = f".astype({eqn.params['new_dtype'].name!r})"

    def apply(x: Any) -> Any:
        made = eqn.primitive.bind(x, **eqn.params)
        return made[0] if eqn.primitive.multiple_results else made

    return Step(text=text, apply=apply)


def _moved(before: Sequence[int], after: Sequence[int], dim: int, count: int) -> int | None:
    """Where a dimension is after a reshape such that `count` contiguous slices of it stay so."""
    leading = math.prod(before[:dim])
    for place, size in enumerate(after):
        if math.prod(after[:place]) == leading and size % count == 0:
            return place
    return None


def _shapes(variables: Sequence[Any]) -> list[tuple[int, ...]]:
    return [type_of(var).shape for var in variables]
