"""Trip counts of loops whose counters are scalars, by running them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes

# A loop that runs longer than this is taken to depend on data.
MOST_ITERATIONS = 1 << 20

_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_BINARY: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "minimum": min,
    "maximum": max,
}
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "opt-barrier")


class UnknownError(Exception):
    """The value depends on data."""


class _Lazy:
    """A tuple whose elements are computed when asked for."""

    def __init__(self, elements: list[Callable[[], Any]]):
        self.elements = elements


def trip_count(
    module: hlo.Module, loop: hlo.Instruction, computation: hlo.Computation
) -> int | None:
    """Iterations of `loop`, a `while` of `computation`, or None if they depend on data.

    From `known_trip_count` in its backend config, else by running its condition and counters.
    """
    known_count = loop.backend_config.get("known_trip_count", {}).get("n")
    if known_count is not None:
        return int(known_count)
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]

    def scalar_state(source: hlo.Computation, value: Callable[[], Any]) -> _Lazy:
        elements = loop.shape.elements if isinstance(loop.shape, shapes.TupleShape) else ()
        state: list[Callable[[], Any]] = []
        for index, shape in enumerate(elements):
            known = None
            if isinstance(shape, shapes.Shape) and shape.size == 1:
                try:
                    known = value().elements[index]()
                except UnknownError:
                    known = None
            state.append(lambda known=known: _known(known))
        return _Lazy(state)

    try:
        state = scalar_state(
            computation, lambda: _evaluate(module, computation, computation[loop.operands[0]], None)
        )
        for count in range(MOST_ITERATIONS):
            if not _evaluate(module, condition, condition.root, [state]):
                return count
            state = scalar_state(
                body, lambda state=state: _evaluate(module, body, body.root, [state])
            )
    except UnknownError:
        return None
    return None


def _known(value: Any) -> Any:
    if value is None:
        raise UnknownError
    return value


def _evaluate(
    module: hlo.Module,
    computation: hlo.Computation,
    instruction: hlo.Instruction,
    arguments: list[Any] | None,
) -> Any:
    """The value of a scalar, or a lazy tuple of them; `arguments` of None are data."""

    def value(index: int) -> Any:
        return _evaluate(module, computation, computation[instruction.operands[index]], arguments)

    opcode = instruction.opcode
    if opcode == "parameter":
        if arguments is None:
            raise UnknownError
        argument = arguments[int(instruction.literal)]
        return argument() if callable(argument) else argument
    if opcode == "constant":
        text = instruction.literal.strip("{} ")
        if text in ("true", "false"):
            return int(text == "true")
        try:
            return int(text)
        except ValueError:
            raise UnknownError from None
    if opcode in _SAME:
        return value(0)
    if opcode == "tuple":
        return _Lazy(
            [lambda index=index: value(index) for index in range(len(instruction.operands))]
        )
    if opcode == "get-tuple-element":
        whole = value(0)
        if not isinstance(whole, _Lazy):
            raise UnknownError
        return whole.elements[int(instruction.attributes["index"])]()
    if opcode in ("fusion", "call"):
        inner = module.computations[instruction.calls[0]]
        thunks = [lambda index=index: value(index) for index in range(len(instruction.operands))]
        return _evaluate(module, inner, inner.root, thunks)
    if opcode == "compare":
        return int(_COMPARE[instruction.attributes["direction"]](value(0), value(1)))
    if opcode == "not":
        return int(not value(0))
    if opcode == "negate":
        return -value(0)
    if opcode in _BINARY:
        return _BINARY[opcode](value(0), value(1))
    raise UnknownError
