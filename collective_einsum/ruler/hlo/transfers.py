"""The instructions that move data between chips or memories; the start and the done of a transfer.

A collective has one of four forms in a TPU schedule: a synchronous instruction, an
asynchronous start and its done, a compute fusion that carries the collective along ("async
collective fusion", on v5e), and a call of another computation that SparseCores run. libtpu 0.0.42.1
writes such a call as a `call-start` with its operands and a `call-done`, libtpu 0.0.50.1 as a
`call-start` without, a `call-update` that hands them over, and a `call-done`. SparseCores also copy
arrays to other layouts, by calls of the same forms.
"""

from __future__ import annotations

import dataclasses
import re

from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import shapes
from collective_einsum.ruler.torus import Route, Torus

START, DONE, STEP, SYNCHRONOUS = "start", "done", "step", "synchronous"
_FUSED_ROOTS = {"AsyncCollectiveStart": START, "AsyncCollectiveDone": DONE}
_UPDATE = "-update"
_CALLERS = ("async-start", "call-start", "custom-call-start", "fusion")
_SPARSE_CORE = "sparsecore"


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective: its instruction, the computation that holds it, its kind and its phase.

    `kind` is the opcode of the collective; an all-reduce whose fusion keeps one slice of the result
    is a "reduce-scatter". `phase` is START, DONE, STEP or SYNCHRONOUS.
    """

    instruction: hlo.Instruction
    computation: hlo.Computation
    kind: str
    phase: str

    def route(self, torus: Torus) -> Route:
        """The links that the collective loads, with the bytes and hops on them."""
        operands = [self.computation[name].shape for name in self.instruction.operands]
        sent = sum(work.total_bytes(shape) for shape in operands)
        groups = self.instruction.replica_groups
        if self.kind == "collective-permute":
            return torus.permute(self.instruction.source_target_pairs, sent)
        if self.kind == "all-gather":
            return torus.all_gather(groups, work.total_bytes(result(self.instruction)))
        if self.kind in ("reduce-scatter", "collective-broadcast"):
            return torus.all_gather(groups, sent)
        if self.kind == "all-reduce":
            return torus.all_reduce(groups, sent)
        return torus.all_to_all(groups, sent)


def collective_in(
    module: hlo.Module, computation: hlo.Computation, instruction: hlo.Instruction
) -> Collective | None:
    """The collective that an instruction runs, starts, finishes or carries along, or None."""
    opcode = instruction.opcode
    if opcode.endswith(_UPDATE):
        return collective_in(module, computation, computation[instruction.operands[0]])
    kind = opcode.removesuffix("-start")
    if kind in work.COLLECTIVES:
        return Collective(instruction, computation, kind, SYNCHRONOUS if kind == opcode else START)
    if opcode not in (*_CALLERS, "call"):
        return None
    for name in instruction.calls:
        inner = module.computations[name]
        for called in inner:
            collective = collective_in(module, inner, called)
            if collective is None:
                continue
            slices = any(other.opcode == "dynamic-slice" for other in inner)
            kind = collective.kind
            if kind == "all-reduce" and slices:
                kind = "reduce-scatter"
            phase = collective.phase
            if opcode.endswith("-start"):
                phase = START
            elif target := _FUSED_ROOTS.get(inner.root.custom_call_target):
                phase = target
            elif "async_collective_fusion_config" in collective.instruction.backend_config:
                phase = STEP
            return dataclasses.replace(collective, kind=kind, phase=phase)
    return None


def is_offloaded(computation: hlo.Computation, start: hlo.Instruction) -> bool:
    """Whether SparseCores run what an instruction starts."""
    while start.opcode.endswith(_UPDATE):
        start = computation[start.operands[0]]
    return start.attributes.get("async_execution_thread", "").strip('"') == _SPARSE_CORE


def sources(start: hlo.Instruction) -> tuple[str, ...]:
    """Names of the operands that a start, or an update in its stead, hands over."""
    return start.operands[1:] if start.opcode.endswith(_UPDATE) else start.operands


def only_prepares(computation: hlo.Computation, instruction: hlo.Instruction) -> bool:
    """Whether an instruction is a part of an asynchronous op that moves nothing: the start of one whose
    operands an update hands over, or a second update."""
    if instruction.opcode.endswith(_UPDATE):
        return computation[instruction.operands[0]].opcode.endswith(_UPDATE)
    users = computation.users[instruction.name] if instruction.opcode.endswith("-start") else ()
    return any(user.opcode.endswith(_UPDATE) for user in users)


def result(instruction: hlo.Instruction) -> shapes.AnyShape:
    """The shape of an instruction's result; for a start, that of its done."""
    opcode, shape = instruction.opcode, instruction.shape
    fused = instruction.name.startswith("async-collective-start")
    is_start = opcode.endswith(("-start", _UPDATE)) or fused
    if not is_start or opcode == "all-reduce-start" or not isinstance(shape, shapes.TupleShape):
        return shape
    # Only a copy's start lists the destination before the source.
    return shape.elements[0 if opcode == "copy-start" else 1]


def copied_hbm_bytes(
    module: hlo.Module, computation: hlo.Computation, start: hlo.Instruction
) -> int:
    """Bytes that an asynchronous copy or slice reads from HBM, and writes to it."""
    given = sources(start)
    source = computation[given[0]]
    target = result(start)
    roots = [module.computations[name].root.opcode for name in start.calls]
    moved = work.total_bytes(target)
    if "dynamic-update-slice" in (start.opcode.removesuffix("-start"), *roots):
        source = computation[given[1]]
        moved = work.total_bytes(source.shape)
    return moved * (work.in_hbm(source.shape) + work.in_hbm(target))


def start_of(done: hlo.Instruction, computation: hlo.Computation, begun: set[str]) -> str:
    """Name of the start, one of `begun`, that a done waits for.

    Raises ValueError if there is none in the same computation.
    """
    instruction = done
    while instruction.name not in begun:
        if not instruction.operands:
            raise ValueError(
                f"{done.name} has no start in its computation {computation.name}: it was started "
                "outside, which this replay does not follow."
            )
        source = computation[instruction.operands[0]]
        if instruction.opcode == "get-tuple-element" and source.name not in begun:
            source = _carried(source, instruction.attributes["index"], computation)
        instruction = source
    return instruction.name


def _carried(source: hlo.Instruction, index: str, computation: hlo.Computation) -> hlo.Instruction:
    """The source of a tuple's element, if `source` only carries a collective's state along."""
    if source.opcode == "while":
        # The element's source is the initial value at the same index of the loop's state.
        before = computation[source.operands[0]]
        return computation[before.operands[int(index)]] if before.opcode == "tuple" else before
    if source.opcode == "fusion":
        aliases = source.attributes.get("output_to_operand_aliasing", "")
        alias = re.search(r"\{" + index + r"\}: \((\d+),", aliases)
        return computation[source.operands[int(alias[1])]] if alias else source
    return source
