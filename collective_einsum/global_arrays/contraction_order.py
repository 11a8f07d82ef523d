"""Reads the arguments of an einsum, and orders its contractions, from strings and shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import opt_einsum
from opt_einsum import parser as oe_parser

from ..spec.spec import Shape


def read(subscripts: Any, operands: Sequence[Any]) -> tuple[str, list[Any]]:
    """The einsum string and the operands, of `("ij,jk", x, y)` or `(x, [0, 1], y, [1, 2], [0, 2])`.

    Raises:
      ValueError: no operand, or neither of both ways to write an einsum.
    """
    if isinstance(subscripts, str):
        if not operands:
            raise ValueError(f"einsum {subscripts!r}: give its operands, too")
        return subscripts, list(operands)
    # An even number, with the first operand an odd one, ends with the labels of the result.
    lists = [*operands[::2], *([] if len(operands) % 2 else operands[-1:])]
    if not operands or not all(isinstance(labels, list | tuple) for labels in lists):
        words = ", ".join(type(argument).__name__ for argument in (subscripts, *operands))
        raise ValueError(
            f"the einsum must be a string such as 'ij,jk->ik', or operands each followed by the list "
            f"of its labels, such as einsum(x, [0, 1], w, [1, 2], [0, 2]), got {words}"
        )
    given = (subscripts, *operands)
    try:
        text, arrays = oe_parser.convert_interleaved_input(given)
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"einsum with labels {[list(labels) for labels in lists]}: each operand is followed by "
            f"the list of its labels, which are hashable and can be sorted, or `...`: {error}"
        ) from error
    return text, list(arrays)


@dataclasses.dataclass(frozen=True)
class Step:
    """A contraction of one or two operands, whose result goes behind the operands that are left.

    Attributes:
      places: of the operands, among those that are left.
      terms: the labels of each.
      out: the labels of the result.
    """

    places: tuple[int, ...]
    terms: tuple[str, ...]
    out: str

    @property
    def formula(self) -> str:
        """The step as an einsum."""
        return f"{','.join(self.terms)}->{self.out}"


def steps(
    name: str, terms: Sequence[str], out: str, shapes: Sequence[Shape], optimize: Any
) -> list[Step]:
    """The einsum as steps, in the order of `opt_einsum.contract_path`, as `jnp.einsum` has it.

    Args:
      name: the einsum, for messages.
      terms: the labels of each operand.
      out: the labels of the result.
      shapes: of the operands.
      optimize: as in `jnp.einsum`.

    Raises:
      ValueError: an `optimize` that opt_einsum does not know.
    """
    left: list[str] = list(terms)
    contractions: list[Step] = []

    def contract(places: tuple[int, ...]) -> None:
        contracted = tuple(left[i] for i in places)
        others = [term for i, term in enumerate(left) if i not in places]
        used = {*out, *"".join(others)}
        kept = "".join(c for c in dict.fromkeys("".join(contracted)) if c in used)
        contractions.append(Step(places, contracted, kept if others else out))
        left[:] = [*others, contractions[-1].out]

    for places in _path(name, f"{','.join(terms)}->{out}", shapes, optimize):
        # Three and more operands: the first two, then their result with the next one.
        first, *rest = sorted(places)
        if not rest:
            contract((first,))
        for done, place in enumerate(rest):
            contract((first, place) if not done else (place - done - 1, len(left) - 1))
    while len(left) > 1:
        contract((0, 1))
    return contractions


def _path(name: str, formula: str, shapes: Sequence[Shape], optimize: Any) -> Any:
    if len(shapes) < 3:
        return [tuple(range(len(shapes)))]
    order = "optimal" if optimize is True else optimize
    try:
        shaped = [tuple(shape) for shape in shapes]
        return opt_einsum.contract_path(formula, *shaped, shapes=True, optimize=order)[0]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"einsum {name} with operands of shapes {', '.join(str(tuple(s)) for s in shapes)}, "
            f"optimize={optimize!r}: {error}; optimize is True, False, a name such as 'greedy', or "
            "a path of opt_einsum"
        ) from error
