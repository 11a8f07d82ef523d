"""Read a scheduled HLO module, as `compiled.as_text()` prints it.

The order of the lines of a scheduled module is the order in which a chip executes them, and most of the
instructions of a TPU module carry the compiler's own estimate of their cycles. This file turns the text into
frozen values; what an instruction costs is said in `bench.work`.

Sources: the HLO text printer and parser of OpenXLA (`xla/hlo/ir/hlo_instruction.cc`, `xla/shape_util.cc`,
`xla/hlo/parser/hlo_parser.cc`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# Memory spaces of a TPU layout, `S(n)`; no `S` is HBM.
HBM, VMEM, SYNC_FLAGS, CMEM, SMEM = 0, 1, 2, 3, 6

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%?([\w.\-]+)")
_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{")
_OPENERS, _CLOSERS = "([{", ")]}"


def _bits(dtype: str) -> int:
    """Bits of one element: `bf16` 16, `f8e4m3fn` 8, `s4` 4, `pred` 8."""
    if dtype in _BITS:
        return _BITS[dtype]
    match = re.match(r"[a-z]+(\d+)", dtype)
    if match is None:
        raise ValueError(
            f"HLO dtype {dtype!r} is unknown to bench.hlo; add its width in bits to `_BITS`."
        )
    return int(match[1])


@dataclasses.dataclass(frozen=True)
class Shape:
    """One array: dtype, dimensions, order from minor to major, first tile, memory space (0 is HBM)."""

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
    def bytes(self) -> int:
        """Bytes it occupies and that move with it: the tiled dimensions are padded to whole tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dims))))
        padded = [self.dims[dim] for dim in order]
        for place, tile in enumerate(reversed(self.tile)):
            if place < len(padded):
                padded[place] = -(-padded[place] // tile) * tile
        return -(-math.prod(padded) * (self.element_bits or _bits(self.dtype)) // 8)


@dataclasses.dataclass(frozen=True)
class Tuple:
    """A tuple of shapes."""

    elements: tuple[AnyShape, ...]


AnyShape = Shape | Tuple


def leaves(shape: AnyShape) -> list[Shape]:
    """The arrays of a shape, depth first."""
    if isinstance(shape, Shape):
        return [shape]
    return [leaf for element in shape.elements for leaf in leaves(element)]


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `attributes` are the words after the operands, unparsed."""

    name: str
    shape: AnyShape
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: Mapping[str, str]
    is_root: bool

    @functools.cached_property
    def backend_config(self) -> dict[str, Any]:
        """The compiler's notes: estimated cycles, trip counts, algorithms."""
        text = self.attributes.get("backend_config", "{}")
        return json.loads(text) if text.startswith("{") else {}

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's cost in clock cycles of this chip, or None where it gives none."""
        match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes.get("backend_config", ""))
        return int(match[1]) if match else None

    @property
    def op_name(self) -> str:
        """Where in the traced program it comes from, named scopes included."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes.get("metadata", ""))
        return match[1] if match else ""

    @property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations it calls."""
        found: list[str] = []
        for key in (
            "calls",
            "to_apply",
            "body",
            "condition",
            "branch_computations",
            "called_computations",
            "true_computation",
            "false_computation",
        ):
            found += _names(self.attributes.get(key, ""))
        return tuple(found)

    def called(self, key: str) -> str:
        """The one computation named by an attribute (`calls`, `body`, `condition`)."""
        return _names(self.attributes[key])[0]

    @functools.cached_property
    def replica_groups(self) -> tuple[tuple[int, ...], ...]:
        """Groups of positions in the mesh's flat order, from the list or the iota form."""
        return parse_replica_groups(self.attributes.get("replica_groups", ""))

    @functools.cached_property
    def source_target_pairs(self) -> tuple[tuple[int, int], ...]:
        """(from, to) positions in the mesh's flat order."""
        text = self.attributes.get("source_target_pairs", "")
        return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),\s*(\d+)\}", text))

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The attribute `dimensions={...}`."""
        return _integers(self.attributes.get("dimensions", ""))


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in the order of execution."""

    name: str
    instructions: Mapping[str, Instruction]
    root: Instruction
    parameters: tuple[Instruction, ...]

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    def __getitem__(self, name: str) -> Instruction:
        return self.instructions[name]

    @functools.cached_property
    def users(self) -> Mapping[str, tuple[Instruction, ...]]:
        """The instructions that read each instruction."""
        found: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                found[operand].append(instruction)
        return {name: tuple(users) for name, users in found.items()}


@dataclasses.dataclass(frozen=True)
class Module:
    """A module: its computations by name, and which is the entry."""

    name: str
    is_scheduled: bool
    num_partitions: int
    computations: Mapping[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Reads a module from its text.

    Raises ValueError if the text is no HLO module, or has no entry computation.
    """
    if not text.lstrip().startswith("HloModule"):
        raise ValueError(
            "this is not the text of an HLO module: it does not start with `HloModule`; pass "
            "`compiled.as_text()`."
        )
    head, *lines = text.lstrip().splitlines()
    computations: dict[str, Computation] = {}
    entry = None
    name, body, is_entry = "", None, False
    for line in lines:
        if body is None:
            match = _HEADER.match(line)
            if match:
                name, body, is_entry = match[2], [], bool(match[1])
        elif line.startswith("}"):
            computations[name] = _computation(name, body)
            entry = computations[name] if is_entry else entry
            body = None
        elif match := _LINE.match(line):
            body.append(_instruction(line, match))
    if entry is None:
        raise ValueError(
            "the HLO module has no ENTRY computation; pass the whole of `compiled.as_text()`."
        )
    partitions = re.search(r"num_partitions=(\d+)", head)
    return Module(
        _NAME.match(head.split()[1])[1],
        "is_scheduled=true" in head,  # type: ignore[index]
        int(partitions[1]) if partitions else 1,
        computations,
        entry,
    )


def parse_shape(text: str) -> AnyShape:
    """Reads `bf16[4,8]{1,0:T(8,128)(2,1)S(3)}` or a tuple of such."""
    return _shape(text, 0)[0]


def parse_replica_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """Reads `{{0,1},{2,3}}` or `[2,2]<=[2,2]T(1,0)`."""
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, source = _integers(iota[1]), _integers(iota[2])
        ids = np.arange(math.prod(source)).reshape(source)
        if iota[3]:
            ids = ids.transpose(_integers(iota[3]))
        return tuple(tuple(int(i) for i in group) for group in ids.reshape(shape))
    return tuple(_integers(group) for group in re.findall(r"\{([\d,\s]+)\}", text))


def _integers(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", text))


def _names(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text)


def _computation(name: str, body: list[Instruction]) -> Computation:
    parameters = sorted((i for i in body if i.opcode == "parameter"), key=lambda i: int(i.literal))
    root = next((i for i in body if i.is_root), body[-1])
    return Computation(name, {i.name: i for i in body}, root, tuple(parameters))


def _instruction(line: str, match: re.Match[str]) -> Instruction:
    shape, at = _shape(line, match.end())
    start = line.index("(", at)
    opcode = line[at:start].strip()
    end = _closing(line, start)
    literal = line[start + 1 : end]
    operands = ()
    if opcode not in ("constant", "parameter", "iota"):
        operands = tuple(_names(word)[-1] for word in _split(literal) if "%" in word)
    attributes: dict[str, str] = {}
    for word in _split(line[end + 1 :]):
        key, equals, value = word.strip().partition("=")
        if equals:
            attributes[key] = value
    return Instruction(match[2], shape, opcode, operands, literal, attributes, bool(match[1]))


def _shape(text: str, at: int) -> tuple[AnyShape, int]:
    while text[at] == " " or text.startswith("/*", at):
        at = at + 1 if text[at] == " " else text.index("*/", at) + 2
    if text[at] == "(":
        elements: list[AnyShape] = []
        at += 1
        while text[at] != ")":
            element, at = _shape(text, at)
            elements.append(element)
            while text[at] in ", ":
                at += 1
        return Tuple(tuple(elements)), at + 1
    match = _SHAPE.match(text, at)
    if match is None:
        raise ValueError(f"bench.hlo cannot read a shape at {text[at : at + 60]!r}.")
    layout = match[3] or ""
    order, _, rest = layout.strip("{}").partition(":")
    tile = re.search(r"T\(([\d,]+)\)", rest)
    space = re.search(r"S\((\d+)\)", rest)
    width = re.search(r"E\((\d+)\)", rest)
    return Shape(
        match[1],
        _integers(match[2]),
        _integers(order),
        _integers(tile[1]) if tile else (),
        int(space[1]) if space else HBM,
        int(width[1]) if width else 0,
    ), match.end()


def _closing(text: str, start: int) -> int:
    """Index of the bracket that closes the one at `start`, quotes skipped."""
    depth, quoted, at = 0, False, start
    while at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise ValueError(f"unbalanced brackets in the HLO line {text[:80]!r}.")


def _split(text: str) -> list[str]:
    """Splits at the commas that stand outside brackets and quotes."""
    words, depth, quoted, begin, at = [], 0, False, 0, 0
    while at < len(text):
        char = text[at]
        if quoted:
            at += char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char in _OPENERS:
            depth += 1
        elif char in _CLOSERS:
            depth -= 1
        elif char == "," and depth == 0:
            words.append(text[begin:at])
            begin = at + 1
        at += 1
    return [*words, text[begin:]] if text[begin:].strip() else words
