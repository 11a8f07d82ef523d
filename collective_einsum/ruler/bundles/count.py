"""Count the bundles that a kernel issues, by following its scalar operations.

A bundle takes one clock cycle. Loop counters and the predicates of branches are scalars that start as
constants, so loops are followed with their trip counts, and predicated regions are counted in the
iterations that enter them. Where a predicate depends on data, the region behind it is counted, and a
loop runs as often as the bound of its exit test says; `Count.assumed` says how often that was so.
Waits for DMAs, and stalls of the vector units, are not in the count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from collective_einsum.ruler.bundles.kernels import Bundle, Kernel, Operation

# Bundles with scalar operations that are followed at most: some seconds of work.
MOST_STEPS = 3_000_000
_WORD = 1 << 32
_ARITHMETIC: Mapping[str, Callable[[int, int], int]] = {
    "sadd": lambda a, b: a + b,
    "ssub": lambda a, b: a - b,
    "smul": lambda a, b: a * b,
    "sand": lambda a, b: a & b,
    "sor": lambda a, b: a | b,
    "sxor": lambda a, b: a ^ b,
    "sshll": lambda a, b: a << (b & 31),
    "sshrl": lambda a, b: (a % _WORD) >> (b & 31),
    "sshra": lambda a, b: a >> (b & 31),
    "smin": min,
    "smax": max,
}
_COMPARISONS: Mapping[str, Callable[[int, int], bool]] = {
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
    """What a kernel issues: bundles, which are cycles, and branches whose way depends on data; with the
    blocks of data that it takes in turn (`Kernel.windows`)."""

    bundles: int
    assumed: int
    windows: int


def count(kernel: Kernel, most_steps: int = MOST_STEPS) -> Count:
    """Follows a kernel from its first bundle to its last.

    Args:
      kernel: the code of one op.
      most_steps: how many bundles with scalar operations are followed at most.

    Raises:
      ValueError: if the kernel issues more of these.
    """
    return _Machine(kernel, most_steps).run()


class _Machine:
    """The state of the scalar unit; a value that depends on data is None."""

    def __init__(self, kernel: Kernel, most_steps: int):
        self.kernel, self.steps_left = kernel, most_steps
        self.registers: dict[str, int | None] = {}
        self.memory: dict[str, int | None] = {}
        self.turns: dict[int, int] = {}
        self.issued = self.assumed = 0
        self.next_scalar = _next_scalar(kernel.bundles)

    def run(self) -> Count:
        """Runs from the first bundle until there is no further one."""
        address, end = 0, len(self.kernel.bundles)
        while address < end:
            scalar = self.next_scalar[address]
            self.issued += scalar - address
            if scalar == end:
                break
            target = self.step(scalar)
            address = scalar + 1
            if target is not None:
                # The bundle after a branch is issued before the branch takes effect.
                if address < end:
                    self.step(address)
                address = target
        return Count(bundles=self.issued, assumed=self.assumed, windows=self.kernel.windows)

    def step(self, address: int) -> int | None:
        """Issues one bundle, all of whose operations read what was before; returns where it goes."""
        self.steps_left -= 1
        if self.steps_left < 0:
            raise ValueError(
                f"kernel {self.kernel.name} issues more scalar bundles than are followed; count the "
                "same op of smaller shapes"
            )
        self.issued += 1
        target, written = None, {}
        for operation in self.kernel.bundles[address].operations:
            runs = self.guard(operation)
            if operation.opcode == "sbr.rel":
                if self.taken(address, operation, runs):
                    target = self.target(operation)
            elif operation.opcode == "vdelay":
                self.issued += self.value(operation.operands[0]) or 0
            elif runs is False or "phi" in operation.opcode:
                continue
            elif operation.opcode == "sst":
                stored = self.value(operation.operands[-1]) if runs else None
                self.memory[operation.operands[0]] = stored
            else:
                # A phi joins values that are in one register already.
                written[operation.register] = None if runs is None else self.result(operation)
        self.registers |= written
        return target

    def guard(self, operation: Operation) -> bool | None:
        """Whether an operation runs; None if that depends on data."""
        if not operation.guard:
            return True
        value = self.registers.get(operation.guard)
        return None if value is None else bool(value) != operation.negated

    def target(self, branch: Operation) -> int:
        """The address that a branch goes to; a region without a start is behind the last bundle."""
        region = -1 if branch.region is None else branch.region
        return self.kernel.regions.get(region, len(self.kernel.bundles))

    def taken(self, address: int, branch: Operation, runs: bool | None) -> bool:
        """Whether a branch is taken, assumed where it depends on data."""
        if runs is not None:
            return runs
        self.assumed += 1
        start = self.target(branch)
        if start > address:
            return False
        self.turns[address] = self.turns.get(address, 0) + 1
        loop = self.kernel.bundles[start : address + 1]
        bound = max((bundle.exit_test or 0 for bundle in loop), default=0)
        again = self.turns[address] < bound
        if not again:
            self.turns[address] = 0
        return again

    def value(self, operand: str) -> int | None:
        """The value of a register or of a constant; None if it depends on data."""
        if operand[:1] in "sp" and operand[1:].isdigit():
            return self.registers.get(operand)
        try:
            return _signed(int(operand))
        except ValueError:
            return None

    def result(self, operation: Operation) -> int | None:
        """What an operation writes."""
        name, _, kind = operation.opcode.partition(".")
        if name == "sld":
            return self.memory.get(operation.operands[0])
        values = [self.value(operand) for operand in operation.operands]
        if name in ("smov", "pmov"):
            return values[0]
        if name == "scalar_select":
            chosen, if_true, if_false = values
            return None if chosen is None else if_true if chosen else if_false
        if name == "pneg":
            return None if values[0] is None else int(not values[0])
        if name in ("pand", "por", "pnand", "pnor"):
            return _logic(name, values)
        if None in values or len(values) != 2:
            return None
        first, second = (value or 0 for value in values)
        if name == "scmp":
            comparison, word = kind.split(".")[:2]
            if word == "u32":
                first, second = first % _WORD, second % _WORD
            compare = _COMPARISONS.get(comparison)
            return None if compare is None else int(compare(first, second))
        # Longer kinds, such as the upper half of a product, are left open.
        compute = _ARITHMETIC.get(name) if "." not in kind else None
        return None if compute is None else _signed(compute(first, second))


def _logic(name: str, values: list[int | None]) -> int | None:
    """And, or, and their negations; one operand may decide alone."""
    deciding = 0 if "and" in name else 1
    if deciding in [None if value is None else int(bool(value)) for value in values]:
        result = deciding
    elif None in values:
        return None
    else:
        result = 1 - deciding
    return 1 - result if name.startswith("pn") else result


def _signed(value: int) -> int:
    """A number as the signed 32-bit word that it becomes."""
    return (value + _WORD // 2) % _WORD - _WORD // 2


def _next_scalar(bundles: tuple[Bundle, ...]) -> list[int]:
    """For each address, the next bundle at or after it that has scalar operations."""
    following = [len(bundles)] * (len(bundles) + 1)
    for address in reversed(range(len(bundles))):
        following[address] = address if bundles[address].operations else following[address + 1]
    return following
