"""Bytes that devices send, counted in a compiled program of any backend."""

from __future__ import annotations

import collections

from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import transfers
from collective_einsum.ruler.hlo import trip_counts as scalars


def sent_bytes(text: str) -> int:
    """Bytes that the busiest device sends to others, summed over all its messages.

    A collective-permute sends its operand once for each pair with another device. The compiler's
    own collectives are counted as rings: over n devices an all-gather sends (n - 1)/n of its result
    from each device, a reduce-scatter and an all-to-all that fraction of their operand, and an
    all-reduce twice that. A loop counts as often as it runs, a conditional by its first branch.

    Raises ValueError if `text` is no HLO module.
    """
    module = hlo.parse(text)
    sent = _sent(module, module.entry)
    everywhere = sent.pop(_EVERYONE, 0.0)
    return round(everywhere + max(sent.values(), default=0.0))


_EVERYONE = -1
_CALLERS = ("call", "fusion", "async-start", "call-start", "custom-call-start", "conditional")


def _sent(module: hlo.Module, computation: hlo.Computation) -> collections.Counter[int]:
    """Bytes by sender."""
    total: collections.Counter[int] = collections.Counter()
    for instruction in computation:
        kind = instruction.opcode.removesuffix("-start")
        if kind in work.COLLECTIVES:
            total.update(_of_collective(module, computation, instruction, kind))
        elif instruction.opcode == "while":
            count = scalars.trip_count(module, instruction, computation) or 1
            body = _sent(module, module.computations[instruction.called("body")])
            total.update({sender: sent * count for sender, sent in body.items()})
        elif instruction.opcode in _CALLERS:
            total.update(_sent(module, module.computations[instruction.calls[0]]))
    return total


def _of_collective(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction, kind: str
) -> dict[int, int]:
    operand = sum(work.total_bytes(computation[name].shape) for name in instruction.operands)
    if kind == "collective-permute":
        pairs = collections.Counter(a for a, b in instruction.source_target_pairs if a != b)
        return {sender: operand * count for sender, count in pairs.items()}
    groups = instruction.replica_groups
    n = max(map(len, groups), default=0) or module.num_partitions
    if kind == "all-gather":
        moved = work.total_bytes(transfers.result(instruction))
    else:
        moved = operand * (2 if kind == "all-reduce" else 1)
    return {_EVERYONE: moved * (n - 1) // n}
