"""Collectives next to a dot: an all-gather whose result a dot reads, a reduce-scatter or an all-reduce
of a dot's result.

A compiled module has such a dot within a fusion, and copies, bitcasts and halves of asynchronous ops
between the two.
"""

from __future__ import annotations

from collections.abc import Iterator

from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import transfers
from collective_einsum.ruler.hlo.stack_frames import SourceLine, callers_lines

# What may stand between a collective and its dot.
_BETWEEN = frozenset(
    ("bitcast", "copy", "reshape", "transpose", "convert", "get-tuple-element", "opt-barrier")
)
_GATHERED, _REDUCED = "all-gather", ("reduce-scatter", "all-reduce")
_DOTS = ("dot", "convolution")


def dots_next_to_collectives(module: hlo.Module) -> dict[str, tuple[SourceLine, ...]]:
    """The collectives of a module that are next to a dot.

    Returns:
      By the name of the instruction that starts a collective, as a stall for it has it: the caller's
      innermost lines that its dots were traced from; none where the module does not say.
    """
    lines: dict[str, tuple[SourceLine, ...]] = {}
    # What fusions contain is no op of its own; SparseCores run what a start calls.
    within = module.called_by("fusion", "-start")
    for computation in module.computations.values():
        if computation.name in within:
            continue
        for instruction in computation:
            dots = tuple(_dots(module, computation, instruction))
            if dots:
                traced = (line for dot in dots for line in _lines(module, dot))
                lines[instruction.name] = tuple(dict.fromkeys(traced))
    return lines


def _dots(
    module: hlo.Module, computation: hlo.Computation, start: hlo.Instruction
) -> Iterator[hlo.Instruction]:
    """The instructions with dots next to the collective that an instruction starts, if it starts one."""
    collective = transfers.collective_in(module, computation, start)
    if collective is None or collective.phase == transfers.DONE:
        return
    if transfers.only_prepares(computation, start):
        return
    if collective.kind == _GATHERED:
        near = _readers(computation, start)
    elif collective.kind in _REDUCED:
        given = (computation[name] for name in transfers.sources(start))
        near = (_source(computation, instruction) for instruction in given)
    else:
        return
    yield from (one for one in near if work.flops(module, computation, one))


def _lines(module: hlo.Module, instruction: hlo.Instruction) -> Iterator[SourceLine]:
    """The caller's innermost lines of the dots that an instruction is or contains."""
    if instruction.opcode in _DOTS:
        yield from callers_lines(module.stack_of(instruction))[:1]
    for name in instruction.calls:
        for inner in module.computations[name]:
            yield from _lines(module, inner)


def _readers(
    computation: hlo.Computation, instruction: hlo.Instruction
) -> Iterator[hlo.Instruction]:
    """What reads the result of a collective, through what may stand between."""
    for user in computation.users[instruction.name]:
        if user.opcode in _BETWEEN or user.opcode.endswith(("-start", "-update", "-done")):
            yield from _readers(computation, user)
        else:
            yield user


def _source(computation: hlo.Computation, instruction: hlo.Instruction) -> hlo.Instruction:
    """What made an array, through what may stand between."""
    while instruction.opcode in _BETWEEN and instruction.operands:
        instruction = computation[instruction.operands[0]]
    return instruction
