"""Ops that the replay cannot price: counted and named, so that none is free without a word."""

from __future__ import annotations

from collective_einsum.ruler.hlo import parse as hlo

# The number of instructions that a note names.
_NAMED = 5

UNKNOWN = (
    "that this reader of schedules does not know; charged the compiler's estimate, or the time of the "
    "HBM bytes where there is none, and no flops"
)
NO_ESTIMATE = (
    "that the compiler gives no estimate of; charged the time of the HBM bytes (of Pallas kernels, "
    "bundles=True or --bundles counts the code)"
)
ON_CHIP = "without an estimate of the compiler and without bytes in HBM; charged no time"
HOST = "that exchange data with the host, which the replay does not model; charged no time"


class Unpriced:
    """Instructions by the reason for which they have no price."""

    def __init__(self) -> None:
        self._by_reason: dict[str, dict[str, str]] = {}

    def add(self, reason: str, instruction: hlo.Instruction) -> None:
        """Counts an instruction, once however often it runs."""
        kind = instruction.custom_call_target or instruction.opcode
        self._by_reason.setdefault(reason, {})[instruction.name] = kind

    def notes(self) -> list[str]:
        """A sentence for each reason: how many instructions, which opcodes (of custom calls, the
        targets), and names of some."""
        return [_note(reason, opcodes) for reason, opcodes in self._by_reason.items()]


def _note(reason: str, opcodes: dict[str, str]) -> str:
    names = [
        name if opcode in name else f"{name} ({opcode})"
        for name, opcode in list(opcodes.items())[:_NAMED]
    ]
    left = len(opcodes) - len(names)
    listed = ", ".join(names) + (f" and {left} more" if left else "")
    kinds = ", ".join(sorted(set(opcodes.values())))
    count = "1 op" if len(opcodes) == 1 else f"{len(opcodes)} ops"
    return f"{count} ({kinds}) {reason}: {listed}"
