"""Replay a scheduled HLO module on one chip of a torus.

Every chip of an SPMD program does the same at the same time, so one chip is followed. Ops run in the order of the
schedule and take the compiler's `estimated_cycles`; asynchronous copies and permutes run beside them, sharing the links
and HBM in fair shares; a `-done` waits for what has not arrived. Nothing is fitted to measurements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax

from bench import hlo, scalars, work
from bench.network import Flow, Network
from bench.timeline import COMPUTE_ROW, DMA_ROW, STALL_ROW, Event, Timeline
from bench.topology import Route, Torus
from collective_einsum.chip import Chip, chip_for

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_HBM = "hbm"
# Custom calls that only name memory.
_FREE_TARGETS = ("AllocateBuffer",)


def replay(compiled: Any, mesh: jax.sharding.Mesh, chip: Chip | None = None) -> Timeline:
    """Replays a compiled program on the torus of a mesh.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returned for a TPU topology, or its text.
      mesh: the mesh it was compiled for; its flat order gives the meaning of device ids.
      chip: what the chip can do; by default told from the mesh's device kind.

    Returns:
      The predicted timeline, in seconds.

    Raises:
      ValueError: if the text is no scheduled TPU module, or does not fit the mesh.
    """
    module = hlo.parse(compiled if isinstance(compiled, str) else compiled.as_text())
    chip = chip or chip_for(mesh.devices.flat[0].device_kind)
    torus = Torus.of_mesh(mesh, chip)
    return replay_module(module, torus, chip)


def replay_module(module: hlo.Module, torus: Torus, chip: Chip) -> Timeline:
    """Replays a parsed module; see `replay`."""
    if not module.is_scheduled:
        raise ValueError(
            f"HLO module {module.name} is not scheduled; pass the text of a compiled program, not of a lowered one."
        )
    if module.num_partitions not in (1, len(torus.coords)):
        raise ValueError(
            f"HLO module {module.name} was compiled for {module.num_partitions} devices but the mesh has "
            f"{len(torus.coords)}; pass the mesh that it was compiled for."
        )
    walk = _Walk(module, torus, chip)
    walk.computation(module.entry)
    return Timeline(
        module.name,
        chip.name,
        walk.network.now,
        walk.hbm_bytes,
        chip.hbm_bandwidth,
        chip.bf16_flops,
        tuple(torus.link_name(link) for link in torus.links),
        tuple(sorted(walk.events, key=lambda event: event.start)),
        tuple(dict.fromkeys(walk.notes)),
    )


@dataclasses.dataclass
class _Transfer:
    """An asynchronous operation between its start and its done."""

    instruction: hlo.Instruction
    flow: Flow
    kind: str
    rows: dict[str, float]
    start: float
    recorded: bool = False


class _Walk:
    """The state of a replay."""

    def __init__(self, module: hlo.Module, torus: Torus, chip: Chip):
        self.module, self.torus, self.chip = module, torus, chip
        capacities: dict[Hashable, float] = {link: chip.link_bandwidth for link in torus.links}
        self.network = Network(capacities | {_HBM: chip.hbm_bandwidth})
        self.events: list[Event] = []
        self.hbm_bytes = 0.0
        self.notes: list[str] = []

    def computation(self, computation: hlo.Computation) -> None:
        """Runs a computation from its first line to its last."""
        pending: dict[str, _Transfer] = {}
        for instruction in computation:
            opcode = instruction.opcode
            if (
                opcode in work.FREE
                or instruction.attributes.get("custom_call_target", "").strip('"') in _FREE_TARGETS
            ):
                continue
            if opcode == "while":
                self.loop(instruction, computation)
            elif opcode == "conditional":
                self.conditional(instruction)
            elif opcode == "call":
                self.computation(self.module.computations[instruction.calls[0]])
            elif opcode.endswith("-start"):
                pending[instruction.name] = self.start(instruction, computation)
            elif opcode.endswith("-done"):
                self.finish(pending[_start_of(instruction, computation)])
            elif opcode.endswith("-update"):
                continue
            elif self.collective_in(instruction, computation):
                self.finish(self.start(instruction, computation), synchronous=True)
            else:
                self.compute(instruction, computation)

    def loop(self, loop: hlo.Instruction, computation: hlo.Computation) -> None:
        """Runs a loop; from an iteration with nothing in flight at either end, the rest are copies of it."""
        count = scalars.trip_count(self.module, loop, computation)
        if count is None:
            self.notes.append(f"{loop.name}: its trip count depends on data; counted once")
            count = 1
        body = self.module.computations[loop.called("body")]
        for iteration in range(count):
            start, first, before = self.network.now, len(self.events), self.hbm_bytes
            alone = not self.network.flows
            self.computation(body)
            left = count - iteration - 1
            if alone and not self.network.flows and left:
                period = self.network.now - start
                events = self.events[first:]
                for repeat in range(1, left + 1):
                    self.events += [event.shifted(repeat * period) for event in events]
                self.hbm_bytes += left * (self.hbm_bytes - before)
                self.network.advance(self.network.now + left * period)
                return

    def conditional(self, instruction: hlo.Instruction) -> None:
        """Runs the branch with the most estimated cycles."""
        branches = [self.module.computations[name] for name in instruction.calls]
        self.notes.append(f"{instruction.name}: counted its longest branch")
        self.computation(
            max(branches, key=lambda branch: sum(each.estimated_cycles or 0 for each in branch))
        )

    def compute(self, instruction: hlo.Instruction, computation: hlo.Computation) -> None:
        """Runs an op that occupies the cores; it takes longer where HBM is shared."""
        moved = work.hbm_bytes(self.module, computation, instruction)
        cycles = instruction.estimated_cycles
        seconds = (cycles or 0) / self.chip.clock_hz
        if instruction.opcode == "custom-call" and cycles is None:
            self.notes.append(
                f"{instruction.name}: a custom call without an estimate, charged the time of its HBM bytes"
            )
        start = self.network.now
        if moved:
            cap = moved / seconds if seconds else self.chip.hbm_bandwidth
            self.network.wait(self.network.start(Flow(instruction.name, moved, {_HBM: 1.0}, cap)))
        else:
            self.network.advance(start + seconds)
        self.hbm_bytes += moved
        if self.network.now > start:
            flops = work.flops(self.module, computation, instruction)
            self.events.append(
                Event(
                    COMPUTE_ROW,
                    instruction.name,
                    start,
                    self.network.now,
                    "dot" if flops else "compute",
                    instruction.op_name,
                    moved,
                    flops=flops,
                )
            )

    def collective_in(
        self, instruction: hlo.Instruction, computation: hlo.Computation
    ) -> tuple[hlo.Instruction, hlo.Computation, str] | None:
        """The collective that an instruction is, starts, or contains, where it stands, and what it amounts to."""
        base = instruction.opcode.removesuffix("-start")
        if base in COLLECTIVES:
            return instruction, computation, base
        if base not in ("async", "fusion"):
            return None
        for name in instruction.calls:
            inner = self.module.computations[name]
            for each in inner:
                found = self.collective_in(each, inner)
                if found:
                    # A fused all-reduce and slice is how the compiler writes some reduce-scatters.
                    sliced = found[2] == "all-reduce" and any(
                        i.opcode == "dynamic-slice" for i in inner
                    )
                    return found[0], found[1], "reduce-scatter" if sliced else found[2]
        return None

    def start(self, instruction: hlo.Instruction, computation: hlo.Computation) -> _Transfer:
        """Sets a transfer going: a collective, or a copy between memories."""
        found = self.collective_in(instruction, computation)
        if found is None:
            moved = _copied_hbm_bytes(instruction, computation)
            # A copy between on-chip memories is taken to be no faster than one from HBM.
            size = moved or work.total_bytes(_result(instruction))
            flow = Flow(
                instruction.name, size, {_HBM: 1.0} if moved else {}, self.chip.hbm_bandwidth
            )
            transfer = _Transfer(instruction, flow, "copy", {DMA_ROW: moved}, self.network.now)
        else:
            route = self.route(*found)
            moved = work.bytes_in_hbm(_result(instruction)) + sum(
                work.bytes_in_hbm(computation[operand].shape) for operand in instruction.operands
            )
            size = route.bytes or moved
            uses: dict[Hashable, float] = dict(route.loads)
            if moved:
                uses[_HBM] = moved / size
            flow = Flow(instruction.name, size, uses, latency=route.hops * self.chip.hop_seconds)
            transfer = _Transfer(
                instruction,
                flow,
                "permute" if found[2] == "collective-permute" else "collective",
                {
                    self.torus.link_name(link): load * route.bytes
                    for link, load in route.loads.items()
                },
                self.network.now,
            )
        self.hbm_bytes += moved
        self.network.start(flow)
        return transfer

    def finish(self, transfer: _Transfer, synchronous: bool = False) -> None:
        """Waits for a transfer, and puts it on the rows of the links that it took."""
        start = self.network.now
        self.network.wait(transfer.flow)
        name, op_name = transfer.instruction.name, transfer.instruction.op_name
        end = transfer.flow.end or transfer.start
        for row, moved in transfer.rows.items():
            self.events.append(
                Event(
                    row,
                    name,
                    transfer.start,
                    end,
                    transfer.kind,
                    op_name,
                    moved,
                    transfer.flow.arrival,
                )
            )
        if self.network.now > start:
            kind = "copy" if transfer.kind == "copy" else "collective"
            self.events.append(Event(STALL_ROW, name, start, self.network.now, kind, op_name))

    def route(self, collective: hlo.Instruction, computation: hlo.Computation, kind: str) -> Route:
        """What a collective asks of the torus."""
        sent = sum(work.total_bytes(computation[operand].shape) for operand in collective.operands)
        groups = collective.replica_groups
        if kind == "collective-permute":
            return self.torus.permute(collective.source_target_pairs, sent)
        if kind == "all-gather":
            return self.torus.all_gather(groups, work.total_bytes(_result(collective)))
        if kind in ("reduce-scatter", "collective-broadcast"):
            return self.torus.all_gather(groups, sent)
        if kind == "all-reduce":
            return self.torus.all_reduce(groups, sent)
        return self.torus.all_to_all(groups, sent)


def _result(instruction: hlo.Instruction) -> hlo.AnyShape:
    """The shape of the result that the matching `-done` returns."""
    opcode, shape = instruction.opcode, instruction.shape
    if (
        not opcode.endswith("-start")
        or opcode == "all-reduce-start"
        or not isinstance(shape, hlo.Tuple)
    ):
        return shape
    return shape.elements[0 if opcode == "copy-start" else 1]


def _copied_hbm_bytes(instruction: hlo.Instruction, computation: hlo.Computation) -> int:
    """HBM bytes of a copy or slice between memories: what it reads there and what it writes there."""
    result = _result(instruction)
    reads = any(
        leaf.memory_space == hlo.HBM and leaf.dims
        for operand in instruction.operands[:1]
        for leaf in hlo.leaves(computation[operand].shape)
    )
    return work.bytes_in_hbm(result) + (work.total_bytes(result) if reads else 0)


def _start_of(done: hlo.Instruction, computation: hlo.Computation) -> str:
    """Name of the start that a done waits for."""
    instruction = done
    while not instruction.opcode.endswith("-start"):
        if not instruction.operands:
            raise ValueError(
                f"{done.name} has no start in its computation {computation.name}: it was started in another "
                "iteration, which this replay does not follow."
            )
        instruction = computation[instruction.operands[0]]
    return instruction.name
