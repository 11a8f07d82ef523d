"""Collectives next to a dot: an all-gather whose result a dot reads, a reduce-scatter or an all-reduce
of a dot's result.

A compiled module has such a dot within a fusion, and copies, bitcasts and halves of asynchronous ops
between the two. The dot is described as a matmul of [rows, contracted] by [contracted, columns].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes, transfers
from collective_einsum.ruler.hlo.stack_frames import SourceLine, callers_lines

# What may stand between a collective and its dot.
_BETWEEN = frozenset(
    ("bitcast", "copy", "reshape", "transpose", "convert", "get-tuple-element", "opt-barrier")
)
_GATHERED, _REDUCED = "all-gather", ("reduce-scatter", "all-reduce")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """A collective and the dot next to it, on one device.

    Attributes:
      name: of the instruction that starts the collective; a stall for it has this name.
      kind: "all-gather", "reduce-scatter" or "all-reduce".
      groups: positions of devices, in the mesh's flat order.
      rows, contracted, columns: sizes of the matmul. Of an all-gather the gathered operand is
        [rows, contracted], unsharded.
      dimension: what the collective gathers or scatters: "rows", "contracted" or "columns"; "" for an
        all-reduce.
      dtypes: of the operand that has the rows, of the other one, and of the result, as HLO names them.
      line: where the collective was traced, or else the dot, outside this library; None if unknown.
      on_chip: whether the operand that has the rows, of an all-gather before it, is in on-chip memory.
    """

    name: str
    kind: str
    groups: tuple[tuple[int, ...], ...]
    rows: int
    contracted: int
    columns: int
    dimension: str
    dtypes: tuple[str, str, str]
    line: SourceLine | None
    on_chip: bool


def neighbours(module: hlo.Module) -> Iterator[Neighbours]:
    """Every collective of a module that is next to a dot and is one matmul with it."""
    for computation in module.computations.values():
        if computation.name in _called_by_fusions(module):
            continue
        for instruction in computation:
            collective = transfers.collective_in(module, computation, instruction)
            if collective is None or collective.phase == transfers.DONE:
                continue
            if transfers.only_prepares(computation, instruction):
                continue
            if collective.kind == _GATHERED:
                yield from _gather(module, computation, instruction, collective)
            elif collective.kind in _REDUCED:
                yield from _reduction(module, computation, instruction, collective)


def _called_by_fusions(module: hlo.Module) -> set[str]:
    """Names of the computations within fusions, and of those that SparseCores run."""
    return {
        name
        for computation in module.computations.values()
        for instruction in computation
        if instruction.opcode == "fusion" or instruction.opcode.endswith("-start")
        for name in instruction.calls
    }


def _gather(
    module: hlo.Module,
    computation: hlo.Computation,
    start: hlo.Instruction,
    collective: transfers.Collective,
) -> Iterator[Neighbours]:
    result = shapes.leaves(transfers.result(collective.instruction))[0]
    for value, user in _readers(computation, start):
        flops = work.flops(module, computation, user)
        out = _results(user)
        if not flops or len(out) != 1:
            continue
        sizes = _matmul(flops, out[0].size, result.size)
        other = _other_dtype(computation, user, result)
        place = collective.instruction.dimensions[0]
        contracts = _contracts(module, user, value, result.dims, place)
        if sizes is None or other is None or contracts is None:
            continue
        rows, contracted, columns = sizes
        yield Neighbours(
            name=start.name,
            kind=collective.kind,
            groups=collective.instruction.replica_groups,
            rows=rows,
            contracted=contracted,
            columns=columns,
            dimension="contracted" if contracts else "rows",
            dtypes=(result.dtype, other, out[0].dtype),
            line=_line(module, start, collective.instruction, user),
            on_chip=not work.in_hbm(computation[transfers.sources(start)[0]].shape),
        )
        return


def _reduction(
    module: hlo.Module,
    computation: hlo.Computation,
    start: hlo.Instruction,
    collective: transfers.Collective,
) -> Iterator[Neighbours]:
    given = transfers.sources(start)
    if len(given) != 1:
        return
    dot = _source(computation, computation[given[0]])
    flops, out = work.flops(module, computation, dot), _results(dot)
    if not flops or len(out) != 1:
        return
    sent = out[0]
    operands = [
        leaf
        for name in dot.operands
        for leaf in shapes.leaves(computation[name].shape)
        if leaf.size > sent.size // max(sent.dims, default=1)
    ]
    leading = math.prod(sent.dims[:-1])

    def has_leading_rows(operand: shapes.Shape) -> bool:
        return (_matmul(flops, sent.size, operand.size) or (0,))[0] == leading

    # The operand whose rows are the leading dimensions of the result comes first.
    for operand in sorted(operands, key=has_leading_rows, reverse=True):
        sizes = _matmul(flops, sent.size, operand.size)
        others = [other for other in operands if other is not operand]
        if sizes is None or not any(sizes[1] * sizes[2] == other.size for other in others):
            continue
        rows, contracted, columns = sizes
        other = next(o for o in others if o.size == contracted * columns)
        yield Neighbours(
            name=start.name,
            kind=collective.kind,
            groups=collective.instruction.replica_groups,
            rows=rows,
            contracted=contracted,
            columns=columns,
            dimension=_scattered(collective, sent, transfers.result(start), rows),
            dtypes=(operand.dtype, other.dtype, sent.dtype),
            line=_line(module, start, collective.instruction, dot),
            on_chip=operand.memory_space != shapes.HBM,
        )
        return


def _line(module: hlo.Module, *instructions: hlo.Instruction) -> SourceLine | None:
    """The caller's innermost line of the first of these instructions that has one."""
    stacks = (callers_lines(module.stack_of(instruction)) for instruction in instructions)
    return next((stack[0] for stack in stacks if stack), None)


def _scattered(
    collective: transfers.Collective, sent: shapes.Shape, kept: shapes.AnyShape, rows: int
) -> str:
    """What a reduce-scatter scatters: the dimension that is shorter in its result."""
    if collective.kind == "all-reduce":
        return ""
    after = shapes.leaves(kept)[0].dims
    place = next((i for i, (a, b) in enumerate(zip(sent.dims, after, strict=False)) if a != b), 0)
    leading = place < len(sent.dims) - 1
    # The rows are the leading dimensions of the result, or, where the operands are swapped, the last.
    return "rows" if leading == (math.prod(sent.dims[:-1]) == rows) else "columns"


def _matmul(flops: int, result: int, operand: int) -> tuple[int, int, int] | None:
    """Rows, contracted and columns of a matmul of so many flops and elements; None if there is none."""
    contracted = flops // (2 * result)
    if not contracted or operand % contracted or flops != 2 * result * contracted:
        return None
    rows = operand // contracted
    return None if result % rows else (rows, contracted, result // rows)


def _contracts(
    module: hlo.Module, user: hlo.Instruction, value: str, dims: tuple[int, ...], place: int
) -> bool | None:
    """Whether a dot contracts dimension `place` of the array `value` of these dimensions that it, or a
    fusion with it, reads; None where the array is reshaped so that this is not plain."""
    if value not in user.operands:
        return None
    side = user.operands.index(value)
    if user.opcode == "dot":
        key = "lhs_contracting_dims" if side == 0 else "rhs_contracting_dims"
        return place in shapes.integers(user.attributes.get(key, ""))
    if user.opcode == "convolution":
        lhs, _, rest = user.attributes["dim_labels"].partition("_")
        labels = lhs if side == 0 else rest.partition("->")[0]
        return labels[place] == ("f" if side == 0 else "i")
    if user.opcode != "fusion":
        return None
    inner = module.computations[user.calls[0]]
    seen = [(inner.parameters[side], place)]
    while seen:
        array, place = seen.pop()
        for reader in inner.users[array.name]:
            contracts = _contracts(module, reader, array.name, dims, place)
            if contracts is not None:
                return contracts
            after = shapes.leaves(reader.shape)[0].dims
            moved = _moved(shapes.leaves(array.shape)[0].dims, after, place)
            if moved is not None:
                seen.append((reader, moved))
    return None


def _moved(before: tuple[int, ...], after: tuple[int, ...], place: int) -> int | None:
    """Where a dimension is after a reshape or a transpose; None if its size does not say."""
    if before == after:
        return place
    if before.count(before[place]) == after.count(before[place]) == 1:
        return after.index(before[place])
    return None


def _results(instruction: hlo.Instruction) -> list[shapes.Shape]:
    return list(shapes.leaves(instruction.shape))


def _other_dtype(
    computation: hlo.Computation, dot: hlo.Instruction, gathered: shapes.Shape
) -> str | None:
    """The dtype of the largest operand of a dot that is not the gathered one."""
    leaves = [leaf for name in dot.operands for leaf in shapes.leaves(computation[name].shape)]
    others = [leaf for leaf in leaves if leaf.size != gathered.size]
    return max(others or leaves, key=lambda leaf: leaf.size).dtype if leaves else None


def _readers(
    computation: hlo.Computation, instruction: hlo.Instruction
) -> Iterator[tuple[str, hlo.Instruction]]:
    """What reads the result of a collective, through what may stand between, and the name it reads."""
    for user in computation.users[instruction.name]:
        if user.opcode in _BETWEEN or user.opcode.endswith(("-start", "-update", "-done")):
            yield from _readers(computation, user)
        else:
            yield instruction.name, user


def _source(computation: hlo.Computation, instruction: hlo.Instruction) -> hlo.Instruction:
    """What made an array, through what may stand between."""
    while instruction.opcode in _BETWEEN and instruction.operands:
        instruction = computation[instruction.operands[0]]
    return instruction
