"""The shapes of HLO values: dtype, dimensions, layout, memory space and bytes.

Sources: the layout printer of OpenXLA (`xla/layout.cc`, `xla/shape_util.cc`).
"""

from __future__ import annotations

import dataclasses
import math
import re

# Memory spaces of a TPU layout, `S(n)`; no `S` is HBM. CMEM is on-chip memory of v4.
HBM, VMEM, CMEM = 0, 1, 3

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](\{[^{}]*\})?")


def _bits(dtype: str) -> int:
    """Bits of one element: `bf16` 16, `f8e4m3fn` 8, `s4` 4, `pred` 8."""
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    if match is None:
        raise ValueError(
            f"HLO dtype {dtype!r} is unknown to ruler.hlo.shapes; add its width in bits to `_BITS`."
        )
    return int(match[1])


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: dtype, dimensions, order from minor to major, first tile, memory space."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    memory_space: int = HBM
    element_bits: int = 0

    @property
    def size(self) -> int:
        """Elements, without padding."""
        return math.prod(self.dims)

    @property
    def bits(self) -> int:
        """Bits of one element."""
        return self.element_bits or _bits(self.dtype)

    @property
    def bytes(self) -> int:
        """Bytes that the array occupies, and that move with it: tiled dimensions are padded to tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        padded = [self.dims[dim] for dim in order]
        for place, tile in enumerate(reversed(self.tile)):
            if place < len(padded):
                padded[place] = -(-padded[place] // tile) * tile
        return -(-math.prod(padded) * self.bits // 8)


@dataclasses.dataclass(frozen=True)
class TupleShape:
    """A tuple of shapes."""

    elements: tuple[AnyShape, ...]


AnyShape = Shape | TupleShape


def leaves(shape: AnyShape) -> list[Shape]:
    """The arrays of a shape, depth first."""
    if isinstance(shape, Shape):
        return [shape]
    return [leaf for element in shape.elements for leaf in leaves(element)]


def parse_shape(text: str) -> AnyShape:
    """Reads `bf16[4,8]{1,0:T(8,128)(2,1)S(3)}` or a tuple of such."""
    return parse_shape_at(text, 0)[0]


def parse_shape_at(text: str, at: int) -> tuple[AnyShape, int]:
    """Reads the shape that begins at an index of a text; also returns where it ends."""
    while text[at] == " " or text.startswith("/*", at):
        at = at + 1 if text[at] == " " else text.index("*/", at) + 2
    if text[at] == "(":
        elements: list[AnyShape] = []
        at += 1
        while text[at] != ")":
            element, at = parse_shape_at(text, at)
            elements.append(element)
            while text[at] in ", ":
                at += 1
        return TupleShape(tuple(elements)), at + 1
    match = _SHAPE.match(text, at)
    if match is None:
        raise ValueError(f"ruler.hlo.shapes cannot read a shape at {text[at : at + 60]!r}.")
    layout = match[3] or ""
    order, _, rest = layout.strip("{}").partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    width = re.search(r"E\((\d+)\)", rest)
    return Shape(
        match[1],
        integers(match[2]),
        integers(order),
        integers(tile[1]) if tile else (),
        int(space[1]) if space else HBM,
        int(width[1]) if width else 0,
    ), match.end()


def integers(text: str) -> tuple[int, ...]:
    """All numbers in a text."""
    return tuple(int(word) for word in re.findall(r"\d+", text))
