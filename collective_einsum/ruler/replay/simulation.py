"""Replay a scheduled HLO module on one chip of a torus.

All chips of an SPMD program do the same at the same time, so the replay follows one chip. Ops run in the
order of the schedule and take the seconds of `ruler.replay.op_seconds`: the compiler's
`estimated_cycles`, for most, less where they wait for HBM (`ruler.hlo.streaming`); asynchronous copies
and collectives overlap with them and divide the links and HBM by max-min fairness, but SparseCores may
run collectives one after another; a `-done` waits until its transfer has arrived. A synchronous
collective is a start and a done with nothing between.
"""

from __future__ import annotations

import dataclasses

import jax

from collective_einsum.chips.chip import Chip
from collective_einsum.chips.names import chip_for
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import opcodes, transfers
from collective_einsum.ruler.hlo import parse as hlo
from collective_einsum.ruler.hlo import trip_counts as scalars
from collective_einsum.ruler.hlo.stack_frames import SourceLine, callers_lines
from collective_einsum.ruler.hlo.streaming import streamed_seconds
from collective_einsum.ruler.replay.argument_copies import argument_copies
from collective_einsum.ruler.replay.events import COMPUTE_ROW, DMA_ROW, STALL_ROW, Event
from collective_einsum.ruler.replay.fair_share import Flow, Network
from collective_einsum.ruler.replay.op_seconds import (
    Basis,
    basis_notes,
    multiplying_seconds,
    op_seconds,
)
from collective_einsum.ruler.replay.timeline import Timeline
from collective_einsum.ruler.replay.unpriced import HOST, NO_ESTIMATE, ON_CHIP, UNKNOWN, Unpriced
from collective_einsum.ruler.torus import Link, Torus

_HBM = "hbm"
_SPARSE_CORES = "SparseCores"
_Resource = str | Link


def replay(
    compiled: jax.stages.Compiled | str, mesh: jax.sharding.Mesh, chip: Chip | None = None
) -> Timeline:
    """Replays a compiled program on the torus of a mesh.

    Args:
      compiled: the result of `jax.jit(f).lower(...).compile()` for a TPU topology, or its text.
      mesh: the mesh it was compiled for; its flat order gives the meaning of device ids.
      chip: rates and bandwidths; by default those of the mesh's device kind.

    Returns:
      The predicted timeline, in seconds.

    Raises:
      ValueError: if the text is no scheduled TPU module, or does not fit the mesh.
    """
    module = hlo.parse(compiled if isinstance(compiled, str) else compiled.as_text() or "")
    chip = chip or chip_for(mesh.devices.flat[0].device_kind)
    return replay_module(module, Torus.of_mesh(mesh, chip), chip)


def replay_module(module: hlo.Module, torus: Torus, chip: Chip) -> Timeline:
    """Replays a parsed module; see `replay`."""
    if not module.is_scheduled:
        raise ValueError(
            f"HLO module {module.name} is not scheduled; pass the text of a compiled program, not "
            "of a lowered one."
        )
    if module.num_devices not in (1, len(torus.coords)):
        raise ValueError(
            f"HLO module {module.name} was compiled for {module.num_devices} devices but the "
            f"mesh has {len(torus.coords)}; pass the mesh that it was compiled for."
        )
    permutes = dict.fromkeys(
        tuple(instruction.source_target_pairs)
        for computation in module.computations.values()
        for instruction in computation
        if instruction.opcode.startswith("collective-permute")
    )
    walk = _Walk(module, torus.distinguish(permutes), chip)
    walk.computation(module.entry)
    copies = argument_copies(module.entry, walk.events, walk.network.now)
    return Timeline(
        name=module.name,
        chip=chip.name,
        total_seconds=walk.network.now,
        hbm_bytes=walk.hbm_bytes,
        hbm_bandwidth=chip.hbm_bandwidth,
        peak_flops=chip.bf16_flops,
        link_bandwidth={
            torus.link_name(link): walk.network.capacities[link]
            for link in sorted(walk.torus.distinguished_links, key=torus.link_name)
        },
        events=tuple(sorted(walk.events, key=lambda event: event.start)),
        notes=(
            *dict.fromkeys(walk.notes),
            *basis_notes(walk.bases.values()),
            *walk.unpriced.notes(),
            *copies,
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Transfer:
    """An asynchronous operation between its start and its done; `rows` are its bytes by row."""

    instruction: hlo.Instruction
    flow: Flow[_Resource]
    kind: str
    op: str
    rows: dict[str, float]


class _Walk:
    """The state of a replay."""

    def __init__(self, module: hlo.Module, torus: Torus, chip: Chip):
        self.module, self.torus, self.chip = module, torus, chip
        links = {link: torus.bandwidth(link, chip) for link in torus.distinguished_links}
        self.hbm_bandwidth = chip.reached_hbm_bandwidth
        self.network: Network[_Resource] = Network({**links, _HBM: self.hbm_bandwidth})
        self.events: list[Event] = []
        self.hbm_bytes = 0.0
        self.notes: list[str] = []
        self.unpriced = Unpriced()
        self.bases: dict[str, Basis] = {}

    def computation(self, computation: hlo.Computation) -> None:
        """Runs a computation from its first line to its last."""
        pending: dict[str, _Transfer] = {}
        for instruction in computation:
            opcode = instruction.opcode
            if work.is_free(instruction) or transfers.only_prepares(computation, instruction):
                continue
            if opcode in opcodes.HOST:
                self.unpriced.add(HOST, instruction)
                continue
            if opcode == "while":
                self.loop(instruction, computation)
                continue
            if opcode == "conditional":
                self.conditional(instruction)
                continue
            if opcode == "call":
                self.computation(self.module.computations[instruction.calls[0]])
                continue
            collective = transfers.collective_in(self.module, computation, instruction)
            phase = collective.phase if collective else None
            if phase == transfers.DONE or opcode.endswith("-done"):
                name = transfers.start_of(instruction, computation, set(pending))
                self.finish(pending.pop(name))
            elif phase == transfers.START or opcode.endswith(("-start", "-update")):
                pending[instruction.name] = self.start(instruction, computation, collective)
            elif phase == transfers.SYNCHRONOUS:
                self.finish(self.start(instruction, computation, collective))
            else:
                self.compute(instruction, computation)

    def loop(self, loop: hlo.Instruction, computation: hlo.Computation) -> None:
        """Runs a loop.

        If an iteration starts and finishes with nothing in flight, all later ones repeat it exactly.
        """
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
        self.computation(max(branches, key=lambda b: sum(i.estimated_cycles or 0 for i in b)))

    def compute(self, instruction: hlo.Instruction, computation: hlo.Computation) -> None:
        """Runs an op that occupies the cores; it takes longer where HBM is shared."""
        moved = work.hbm_bytes(self.module, computation, instruction)
        dots = list(work.multiplied(self.module, computation, instruction))
        multiplying = multiplying_seconds(self.chip, dots)
        seconds, basis = op_seconds(self.chip, computation, instruction, moved, multiplying)
        self.bases[instruction.name] = basis
        flops = sum(dot.flops for dot in dots)
        streamed = streamed_seconds(self.chip, instruction, moved, flops)
        if basis == "estimate" and instruction.estimated_cycles and streamed is not None:
            seconds = min(seconds, streamed)
        custom = instruction.opcode == "custom-call"
        if basis == "none" and (custom or instruction.lacks_estimate):
            self.unpriced.add(NO_ESTIMATE, instruction)
        elif not opcodes.is_known(instruction.opcode):
            self.unpriced.add(UNKNOWN, instruction)
        elif not seconds and not moved and work.elements(instruction.shape) > 1:
            self.unpriced.add(ON_CHIP, instruction)
        start = self.network.now
        if moved:
            cap = moved / seconds if seconds else self.hbm_bandwidth
            self.network.wait(self.network.start(Flow(instruction.name, moved, {_HBM: 1.0}, cap)))
        else:
            self.network.advance(start + seconds)
        self.hbm_bytes += moved
        if self.network.now > start:
            self.events.append(
                Event(
                    row=COMPUTE_ROW,
                    name=instruction.name,
                    start=start,
                    end=self.network.now,
                    kind="dot" if flops else "compute",
                    op_name=instruction.op_name,
                    bytes=moved,
                    flops=flops,
                    lines=self.lines(instruction),
                    op=instruction.opcode,
                )
            )

    def start(
        self,
        instruction: hlo.Instruction,
        computation: hlo.Computation,
        collective: transfers.Collective | None,
    ) -> _Transfer:
        """Starts a transfer: a collective, or a copy between memories."""
        uses: dict[_Resource, float] = {}
        if collective is None:
            if not opcodes.is_known(instruction.opcode):
                self.unpriced.add(UNKNOWN, instruction)
            kind = op = "copy"
            moved = transfers.copied_hbm_bytes(self.module, computation, instruction)
            # Assumption: a copy between on-chip memories is no faster than one from HBM.
            size = moved or work.total_bytes(transfers.result(instruction))
            cap, latency = self.hbm_bandwidth, 0.0
            rows = {DMA_ROW: float(moved)}
        else:
            op = collective.kind
            kind = "permute" if op == "collective-permute" else "collective"
            moved = work.bytes_in_hbm(transfers.result(instruction)) + sum(
                work.bytes_in_hbm(computation[operand].shape)
                for operand in transfers.sources(instruction)
            )
            route = collective.route(self.torus)
            size = route.bytes or moved
            cap, latency = float("inf"), self.latency(kind, route.hops)
            uses |= route.loads
            rows: dict[str, float] = {}
            for link, load in route.loads.items():
                row = self.torus.link_name(link)
                carried = load * route.bytes * self.torus.fraction(link)
                rows[row] = rows.get(row, 0.0) + carried
        queue = None
        if transfers.is_offloaded(computation, instruction):
            latency += self.chip.offload_seconds
            if collective and self.chip.sparse_cores_queue:
                queue = _SPARSE_CORES
        if moved:
            uses[_HBM] = moved / size
        flow = Flow(instruction.name, size, uses, cap, latency, queue)
        self.hbm_bytes += moved
        self.network.start(flow)
        return _Transfer(instruction, flow, kind, op, rows)

    def latency(self, kind: str, hops: int) -> float:
        """Seconds of a transfer between chips beside its bytes; none if it stays on the chip."""
        chip = self.chip
        fixed = chip.permute_seconds if kind == "permute" else chip.collective_seconds
        return hops * chip.hop_seconds + fixed if hops else 0.0

    def finish(self, transfer: _Transfer) -> None:
        """Waits for a transfer, and adds its events to the rows of its links."""
        start = self.network.now
        self.network.wait(transfer.flow)
        name, op_name = transfer.instruction.name, transfer.instruction.op_name
        lines = self.lines(transfer.instruction)
        arrival = transfer.flow.arrival
        for row, moved in transfer.rows.items():
            end = arrival - transfer.flow.latency
            self.events.append(
                Event(
                    row=row,
                    name=name,
                    start=transfer.flow.begin,
                    end=end,
                    kind=transfer.kind,
                    op_name=op_name,
                    bytes=moved,
                    arrival=arrival,
                    lines=lines,
                    op=transfer.op,
                )
            )
        if self.network.now > start:
            kind = "copy" if transfer.kind == "copy" else "collective"
            self.events.append(
                Event(
                    row=STALL_ROW,
                    name=name,
                    start=start,
                    end=self.network.now,
                    kind=kind,
                    op_name=op_name,
                    lines=lines,
                    op=transfer.op,
                )
            )

    def lines(self, instruction: hlo.Instruction) -> tuple[SourceLine, ...]:
        """The caller's source lines of an instruction, the innermost first."""
        return callers_lines(self.module.stack_of(instruction))
