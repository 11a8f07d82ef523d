"""Read a scheduled HLO module, as `compiled.as_text()` prints it.

The order of the lines of a scheduled module is the order in which a chip executes them, and most of
the instructions of a TPU module carry the compiler's own estimate of their cycles. This file turns
the text into frozen values; `instruction_cost` counts the flops and bytes of an instruction.

Sources: the HLO text printer and parser of OpenXLA (`xla/hlo/ir/hlo_instruction.cc`,
`xla/shape_util.cc`, `xla/hlo/parser/hlo_parser.cc`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from collective_einsum.ruler.hlo.brackets import closing, split
from collective_einsum.ruler.hlo.replica_groups import parse_replica_groups
from collective_einsum.ruler.hlo.shapes import AnyShape, integers, parse_shape_at
from collective_einsum.ruler.hlo.stack_frames import SourceLine, Stacks, parse_stacks

_LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = ")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{")
# `estimated_cycles` of an op that the compiler has no estimate of: XLA:TPU writes it for some fusions of
# float32 scores of 8 MiB and more (a prompt of 8192 positions on v5e, by libtpu 0.0.50.1).
_NO_ESTIMATE = 2**63 - 1
_END = re.compile(r'\}(, execution_thread="[^"]*")?\s*$')


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
        """The attribute `backend_config`: estimated cycles, trip counts, algorithms."""
        text = self.attributes.get("backend_config", "{}")
        return json.loads(text) if text.startswith("{") else {}

    @property
    def estimated_cycles(self) -> int | None:
        """The compiler's cost in clock cycles of this chip, or None where it gives none."""
        return None if self.lacks_estimate else self._written_cycles

    @property
    def lacks_estimate(self) -> bool:
        """Whether the compiler says that it has no estimate for the op, though it has for its kind."""
        return self._written_cycles == _NO_ESTIMATE

    @functools.cached_property
    def _written_cycles(self) -> int | None:
        match = re.search(r'"estimated_cycles":"?(\d+)', self.attributes.get("backend_config", ""))
        return int(match[1]) if match else None

    @property
    def issued_bundles(self) -> int | None:
        """The VLIW bundles that the op issues, if `ruler.bundles` wrote their number into the text."""
        match = re.search(r'"issued_bundles":"(\d+)', self.attributes.get("backend_config", ""))
        return int(match[1]) if match else None

    @property
    def windows(self) -> int:
        """The blocks of data that an op with `issued_bundles` takes in turn, fetching the next one while
        it computes one."""
        match = re.search(r'"issued_windows":"(\d+)', self.attributes.get("backend_config", ""))
        return int(match[1]) if match else 1

    @property
    def estimated_bytes(self) -> int | None:
        """The bytes that the author of a kernel says it reads and writes (`pl.CostEstimate`)."""
        match = re.search(r'"bytes_accessed":"?(\d+)', self.attributes.get("backend_config", ""))
        return int(match[1]) if match else None

    @property
    def custom_call_target(self) -> str:
        """The target of a custom call; empty for other ops."""
        return self.attributes.get("custom_call_target", "").strip('"')

    @property
    def op_name(self) -> str:
        """The traced operation, with its named scopes, that the instruction was compiled from."""
        match = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes.get("metadata", ""))
        return match[1] if match else ""

    @property
    def stack_frame(self) -> int:
        """The number of the stack frame that the instruction was traced in; 0 where there is none."""
        match = re.search(r"stack_frame_id=(\d+)", self.attributes.get("metadata", ""))
        return int(match[1]) if match else 0

    @property
    def source_line(self) -> SourceLine | None:
        """The source line in the metadata itself, as modules without stack frames have it."""
        metadata = self.attributes.get("metadata", "")
        file = re.search(r'source_file="([^"]*)"', metadata)
        line = re.search(r"source_line=(\d+)", metadata)
        return SourceLine(file=file[1], line=int(line[1])) if file and line else None

    @property
    def calls(self) -> tuple[str, ...]:
        """Names of the computations that the instruction calls."""
        names: list[str] = []
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
            names += _names(self.attributes.get(key, ""))
        return tuple(names)

    def called(self, key: str) -> str:
        """The one computation named by an attribute (`calls`, `body`, `condition`)."""
        return _names(self.attributes[key])[0]

    @functools.cached_property
    def replica_groups(self) -> tuple[tuple[int, ...], ...]:
        """Groups of positions in the mesh's flat order, from the list or the iota form."""
        groups = self.attributes.get("replica_groups", "")
        if "device_ids" in self.attributes:
            groups += f",device_ids={self.attributes['device_ids']}"
        return parse_replica_groups(groups)

    @functools.cached_property
    def source_target_pairs(self) -> tuple[tuple[int, int], ...]:
        """(from, to) positions in the mesh's flat order."""
        text = self.attributes.get("source_target_pairs", "")
        return tuple((int(a), int(b)) for a, b in re.findall(r"\{(\d+),\s*(\d+)\}", text))

    @property
    def dimensions(self) -> tuple[int, ...]:
        """The attribute `dimensions={...}`."""
        return integers(self.attributes.get("dimensions", ""))


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
        """The instructions that read an instruction, by its name."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self:
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return {name: tuple(readers) for name, readers in users.items()}


@dataclasses.dataclass(frozen=True)
class Module:
    """A module: its computations by name, its entry, and for how many devices it was compiled."""

    name: str
    is_scheduled: bool
    num_partitions: int
    computations: Mapping[str, Computation]
    entry: Computation
    stacks: Stacks = dataclasses.field(default_factory=dict, repr=False)
    replica_count: int = 1

    @property
    def num_devices(self) -> int:
        """The number of devices that run the module together."""
        return self.num_partitions * self.replica_count

    def called_by(self, *endings: str) -> set[str]:
        """Names of the computations that ops call whose opcodes end so: "fusion", "-start"."""
        return {
            name
            for computation in self.computations.values()
            for instruction in computation
            if instruction.opcode.endswith(endings)
            for name in instruction.calls
        }

    def stack_of(self, instruction: Instruction) -> tuple[SourceLine, ...]:
        """The call stack that an instruction was traced in, the innermost line first; () if unknown."""
        line = instruction.source_line
        return self.stacks.get(instruction.stack_frame, () if line is None else (line,))


_WHOLE = "the text may be cut short: pass the whole of `compiled.as_text()`"


def parse(text: str) -> Module:
    """Reads a module from its text.

    Raises ValueError if the text is no HLO module, or ends too early.
    """
    if not text.lstrip().startswith("HloModule"):
        raise ValueError(
            "this is not the text of an HLO module: it does not start with `HloModule`; pass "
            "`compiled.as_text()`."
        )
    head, *lines = text.lstrip().split("\n")
    is_scheduled = "is_scheduled=true" in head
    computations, entry = _computations(lines)
    if entry is None:
        if not is_scheduled:
            raise ValueError(
                "the HLO module has no ENTRY computation of a scheduled one, and is not scheduled; "
                "pass the text of a compiled program, not of a lowered one."
            )
        raise ValueError(f"the HLO module has no ENTRY computation; {_WHOLE}.")
    for computation in computations.values():
        _check_names(computation, computations)
    return Module(
        head.split()[1].rstrip(","),
        is_scheduled,
        _count(head, "num_partitions"),
        computations,
        entry,
        parse_stacks(lines),
        _count(head, "replica_count"),
    )


def _count(head: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", head)
    return int(match[1]) if match else 1


def _computations(lines: Iterable[str]) -> tuple[dict[str, Computation], Computation | None]:
    """All computations by name, and the entry; None if it is not there."""
    computations: dict[str, Computation] = {}
    entry = None
    name, body, is_entry = "", None, False
    for line in lines:
        if body is None:
            match = _HEADER.match(line)
            if match:
                name, body, is_entry = match[2], [], bool(match[1])
        elif match := _LINE.match(line):
            body.append((match, [line]))
        elif _END.match(line):
            if not body:
                raise ValueError(f"computation {name} of the HLO module has no ops; {_WHOLE}.")
            instructions = [_read_instruction("\n".join(op), match) for match, op in body]
            computations[name] = _computation(name, instructions)
            entry = computations[name] if is_entry else entry
            body = None
        elif body:
            # Attributes of a Pallas kernel go on over lines.
            body[-1][1].append(line)
    if body is not None:
        raise ValueError(
            f"the HLO module ends within computation {name}, so that it has no ENTRY computation that "
            f"is complete; {_WHOLE}."
        )
    return computations, entry


def _read_instruction(line: str, match: re.Match[str]) -> Instruction:
    try:
        return _instruction(line, match)
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"the line {line.strip()[:80]!r} of the HLO module cannot be read ({error}); {_WHOLE}."
        ) from error


def _check_names(computation: Computation, computations: Mapping[str, Computation]) -> None:
    """Refuses a computation that reads ops, or calls computations, that are not there."""
    for instruction in computation:
        read = (name for name in instruction.operands if name not in computation.instructions)
        called = (name for name in instruction.calls if name not in computations)
        missing = next(itertools.chain(read, called), None)
        if missing is not None:
            raise ValueError(
                f"op {instruction.name} of computation {computation.name} names {missing}, which the "
                f"HLO module does not have; {_WHOLE}."
            )


def _names(text: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", text)


def _computation(name: str, body: list[Instruction]) -> Computation:
    parameters = sorted((i for i in body if i.opcode == "parameter"), key=lambda i: int(i.literal))
    root = next((i for i in body if i.is_root), None)
    if root is None:
        raise ValueError(f"computation {name} of the HLO module has no ROOT op; {_WHOLE}.")
    return Computation(name, {i.name: i for i in body}, root, tuple(parameters))


def _instruction(line: str, match: re.Match[str]) -> Instruction:
    shape, at = parse_shape_at(line, match.end())
    start = line.index("(", at)
    opcode = line[at:start].strip()
    end = closing(line, start)
    literal = line[start + 1 : end]
    operands = ()
    if opcode not in ("constant", "parameter", "iota"):
        operands = tuple(_names(word)[-1] for word in split(literal) if "%" in word)
    attributes: dict[str, str] = {}
    for word in split(line[end + 1 :]):
        key, equals, value = word.strip().partition("=")
        if equals:
            attributes[key] = value
    return Instruction(match[2], shape, opcode, operands, literal, attributes, bool(match[1]))
