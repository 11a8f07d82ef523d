"""The seconds of an op that occupies the cores, while nothing else uses HBM.

XLA:TPU's `estimated_cycles` are fair for bf16 dots and wrong for narrower ones: by libtpu 0.0.50.1,
[64, 4608] x [4608, 10240] on v4 has 54,627 cycles with int8 weights where 26,719 bundles are issued,
and 70,366 with f8e4m3fn weights where there are 227,745. (bf16 dots issue 10% to 22% fewer too; but
replayed with estimates PaLM 540B's decode steps in bf16 are within 7% of what Pope et al. measured,
and with bundles 6% to 17% below.) And they charge every op for what one waits that reads HBM and writes
it, 1,800 cycles on v5e, if it does so or not: the two ops of an RMS norm of [8, 8192] in on-chip memory
have 5,000 cycles where some 200 bundles are issued, and took under 500 cycles in a profile of decoding
on v5e (the records of `bench.truth`).

Where the text has an op's issued bundles (`ruler.bundles`), its time by them is that of a pipeline of
its n windows: the first one is fetched, then each further one is fetched while the one before is
computed, and the last one is computed. Fetching takes its HBM bytes at the rate at which a dot streams
its larger operand; computing takes its bundles, and no less than the matrix unit's peak allows, for
which bundles do not wait: dots of int8 weights on v5e issue up to a fifth fewer, and of large ones on
TPU7x only a part is counted. That time counts for a dot, for a Pallas kernel, which has no estimate,
and for all else that moves nothing from or to HBM. All else that does takes the shorter of the estimate
and of this time with the fill of HBM's pipeline.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Literal

from collective_einsum.chips.chip import Chip
from collective_einsum.chips.peaks import peak_flops
from collective_einsum.ruler.hlo import instruction_cost as work
from collective_einsum.ruler.hlo import moves, shapes
from collective_einsum.ruler.hlo import parse as hlo

Basis = Literal["estimate", "confirmed", "bundles", "none"]


def op_seconds(
    chip: Chip,
    computation: hlo.Computation,
    instruction: hlo.Instruction,
    moved: int,
    multiplying: float,
) -> tuple[float, Basis]:
    """The seconds of an op, and by which account; a dot never exceeds its peak.

    Args:
      chip: rates and bandwidths.
      computation: where the op is in.
      instruction: the op.
      moved: bytes that it reads from and writes to HBM.
      multiplying: seconds of its dots at the peak; 0.0 without any.

    Returns:
      Seconds; and "bundles"; or "confirmed" for an estimate of what moves from or to HBM that is no
      longer than bundles and bytes; or "estimate" for one without bundles; or "none" where there is
      neither, and the time is that of the bytes, which is left to the replay: 0.
    """
    cycles = instruction.estimated_cycles
    estimate = max((cycles or 0) / chip.clock_hz, multiplying)
    if instruction.issued_bundles is not None:
        fetching = moved / chip.reached_hbm_bandwidth
        issuing = max(instruction.issued_bundles / chip.clock_hz, multiplying)
        pipelined = pipeline_seconds(fetching, issuing, instruction.windows)
        if cycles is None or multiplying or not moved:
            return pipelined, "bundles"
        if pipelined + chip.hbm_fill_seconds < estimate:
            return pipelined + chip.hbm_fill_seconds, "bundles"
        return estimate, "confirmed"
    moving = moves.move_seconds(chip, computation, instruction)
    return moving or estimate, "none" if cycles is None and moving is None else "estimate"


def multiplying_seconds(chip: Chip, dots: Iterable[work.Multiplied]) -> float:
    """Seconds of dots at the chip's peaks for the dtypes of their operands."""
    return sum(dot.flops / peak_flops(chip, _dtype(dot.lhs), _dtype(dot.rhs)) for dot in dots)


def _dtype(shape: shapes.Shape) -> str:
    """A dtype that has the peak of an operand's."""
    if shape.bits > 8:
        return "bfloat16"
    return "float8_e4m3fn" if shape.dtype.startswith("f") else "int8"


def pipeline_seconds(fetching: float, issuing: float, windows: int) -> float:
    """Seconds of `windows` equal blocks, fetched and computed in turn with two buffers."""
    return (fetching + issuing + (windows - 1) * max(fetching, issuing)) / windows


def basis_notes(bases: Collection[Basis]) -> tuple[str, ...]:
    """A sentence on how many ops were charged by bundles, where any has them."""
    counts = {basis: sum(b == basis for b in bases) for basis in ("bundles", "confirmed")}
    if not any(counts.values()):
        return ()
    return (
        f"{sum(counts.values())} ops have their issued bundles counted: {counts['bundles']} charged by "
        f"bundles and HBM bytes; {counts['confirmed']} by the compiler's estimate, since they wait for "
        "HBM and it is no longer; dots of 16 bits and all other ops by estimates",
    )
