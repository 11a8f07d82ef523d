"""Trip counts of loops whose counters are scalars, by running the counters."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Sequence

from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes

# A loop with more iterations than this counts as dependent on data.
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
_UNARY: dict[str, Callable[[int], int]] = {
    "not": lambda value: int(not value),
    "negate": operator.neg,
}
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-done", "copy-start", "opt-barrier")


class UnknownError(Exception):
    """The value depends on data."""


@dataclasses.dataclass(frozen=True)
class _LazyTuple:
    """A tuple whose elements are computed when they are read."""

    elements: Sequence[_Thunk]


_Value = int | _LazyTuple
_Thunk = Callable[[], _Value]


def trip_count(
    module: hlo.Module, loop: hlo.Instruction, computation: hlo.Computation
) -> int | None:
    """Iterations of `loop`, a `while` of `computation`, or None if they depend on data.

    The count is `known_trip_count` of the backend config, or else comes from running the loop's
    condition and counters.
    """
    known_count = loop.backend_config.get("known_trip_count", {}).get("n")
    if known_count is not None:
        return int(known_count)
    condition = module.computations[loop.called("condition")]
    body = module.computations[loop.called("body")]
    outside = _Frame(module, computation, None)
    try:
        state = _scalars(loop.shape, lambda: outside.value(computation[loop.operands[0]]))
        for count in range(MOST_ITERATIONS):
            arguments: list[_Thunk] = [lambda state=state: state]
            if not _Frame(module, condition, arguments).value(condition.root):
                return count
            inside = _Frame(module, body, arguments)
            state = _scalars(loop.shape, lambda inside=inside: inside.value(body.root))
    except UnknownError:
        return None
    return None


def _scalars(shape: shapes.AnyShape, state: _Thunk) -> _LazyTuple:
    """The state of a loop, of `shape`: its scalars computed at once, all else unknown."""
    elements = shape.elements if isinstance(shape, shapes.TupleShape) else ()
    return _LazyTuple([_scalar(element, index, state) for index, element in enumerate(elements)])


def _scalar(shape: shapes.AnyShape, index: int, state: _Thunk) -> _Thunk:
    if isinstance(shape, shapes.Shape) and shape.size == 1:
        try:
            value = _element(state(), index)
        except UnknownError:
            return _unknown
        return lambda: value
    return _unknown


def _element(value: _Value, index: int) -> _Value:
    if not isinstance(value, _LazyTuple):
        raise UnknownError
    return value.elements[index]()


def _unknown() -> _Value:
    raise UnknownError


def _constant(text: str) -> int:
    if text in ("true", "false"):
        return int(text == "true")
    try:
        return int(text)
    except ValueError:
        raise UnknownError from None


@dataclasses.dataclass(frozen=True)
class _Frame:
    """A computation that runs, with its arguments; None where they are data."""

    module: hlo.Module
    computation: hlo.Computation
    arguments: Sequence[_Thunk] | None

    def value(self, instruction: hlo.Instruction) -> _Value:
        """The value of a scalar, or a tuple of them."""
        opcode = instruction.opcode
        if opcode == "parameter":
            if self.arguments is None:
                raise UnknownError
            return self.arguments[int(instruction.literal)]()
        if opcode == "constant":
            return _constant(instruction.literal.strip("{} "))
        if opcode in _SAME:
            return self.operands(instruction)[0]()
        if opcode == "tuple":
            return _LazyTuple(self.operands(instruction))
        if opcode == "get-tuple-element":
            return _element(self.operands(instruction)[0](), int(instruction.attributes["index"]))
        if opcode in ("fusion", "call"):
            inner = self.module.computations[instruction.calls[0]]
            return _Frame(self.module, inner, self.operands(instruction)).value(inner.root)
        return self.integer(instruction)

    def integer(self, instruction: hlo.Instruction) -> int:
        """The value of a comparison or of arithmetic."""
        opcode = instruction.opcode
        operation = _COMPARE[instruction.attributes["direction"]] if opcode == "compare" else None
        operation = operation or _UNARY.get(opcode) or _BINARY.get(opcode)
        if operation is None:
            raise UnknownError
        values = [operand() for operand in self.operands(instruction)]
        integers = [value for value in values if isinstance(value, int)]
        if len(integers) < len(values):
            raise UnknownError
        return int(operation(*integers))

    def operands(self, instruction: hlo.Instruction) -> list[_Thunk]:
        """The values of its operands, computed when they are read."""

        def thunk(name: str) -> _Thunk:
            return lambda: self.value(self.computation[name])

        return [thunk(name) for name in instruction.operands]
