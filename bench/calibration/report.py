"""The tables of a calibration, and its file."""

from __future__ import annotations

import itertools
from pathlib import Path

from collective_einsum.chips import (
    DotObservation,
    Observations,
    PassKind,
    PassObservation,
    Scattered,
    as_chip,
    file_name,
    observed_folder,
)
from collective_einsum.ruler.replay import legend, table, wrapped

_DTYPES = {"bfloat16": "bf16", "float8_e4m3fn": "fp8"}
_SCATTERED: dict[Scattered, str] = {"whole": "scattered", "ring": "chunk"}
_PASSES: dict[PassKind, str] = {
    "add": "a scatter's ring adds a block that arrived; bytes: read and written",
    "add int8": "the same where weights are int8; bytes: as above",
    "add halves": "one that sends halves of blocks either way adds all that arrive; bytes: as above",
    "slice": "a block is taken of what lax's reduce-scatter left; bytes, as below: of the array",
    "move": "blocks are moved apart before a reduce-scatter of a dimension of their own",
    "exchange": "they are moved apart before an all-to-all, and what arrived is added up",
    "copy int8": "int8 weights, sliced by rows for a ring's dots, are copied",
}
_COLUMNS = {
    "sizes": "rows, contracted and columns",
    "us": "of the dot, at the chip's clock",
    "Tflop/s": "a multiply-add is two",
    "source": "bundles: the bundles that it issues, with its HBM bytes; estimate: the compiler's "
    "cycles; measured: timed on the attached device",
}


def print_observations(observations: Observations) -> str:
    """A table of dots by dtypes and one of memory passes, their legends, and what the first shows."""
    how = "measured on the attached device with" if observations.measured else "predicted by"
    lines = [
        f"{observations.chip}, {how} {observations.compiler} with jax {observations.jax}\n",
        table(("dtypes", *_COLUMNS), (_cells(observations, dot) for dot in observations.dots)),
        "",
        legend(
            {
                "dtypes": "of both operands; sum: it adds to a sum of 32 bits, in the middle of a "
                "ring; gathered: its left operand is, by lax; scattered: its result is; chunk: its "
                "result is one of a ring's chunks",
                **_COLUMNS,
            }
        ),
        "",
        table(
            ("pass", "array", "MB", "us", "GB/s", "source"),
            (_pass_cells(observations, one) for one in observations.passes),
        ),
        "",
        legend(
            {
                **_PASSES,
                "array": "rows and columns, which four devices split",
                "us": "predicted by the compiler, also where dots were timed",
                "GB/s": "bytes over us; -: the compiler spares the pass",
                "source": "bundles: those that it issues, with its HBM bytes; estimate: the compiler's "
                "cycles",
            }
        ),
        "",
        *wrapped(_conclusion(observations)),
    ]
    return "\n".join(lines)


def write(observations: Observations, name: str, folder: str | None) -> Path:
    """Writes the file of a chip, by its short name, into a folder, by default the library's; returns
    its path."""
    where = observed_folder() if folder is None else Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    version = observations.compiler.removeprefix("libtpu ")
    path = where / file_name(name, version)
    path.write_text(observations.to_json(), encoding="utf-8")
    return path


def _pass_cells(observations: Observations, one: PassObservation) -> tuple[str, ...]:
    seconds = one.cycles / observations.clock_hz
    return (
        one.kind,
        f"{one.rows} x {one.columns}",
        f"{one.bytes / 1e6:.2f}",
        f"{seconds * 1e6:.2f}",
        f"{one.bytes / seconds / 1e9:.0f}" if one.cycles > 1 else "-",
        one.source,
    )


def _cells(observations: Observations, dot: DotObservation) -> tuple[str, ...]:
    rate = _rate(observations, dot) / 1e12
    return (
        _dtypes(dot),
        f"{dot.rows} x {dot.contracted} x {dot.columns}",
        f"{dot.cycles / observations.clock_hz * 1e6:.2f}",
        f"{rate:.1f}",
        dot.source,
    )


def _rate(observations: Observations, dot: DotObservation) -> float:
    """Flop/s."""
    return 2 * dot.rows * dot.contracted * dot.columns * observations.clock_hz / dot.cycles


def _dtypes(dot: DotObservation) -> str:
    operands = " x ".join(_DTYPES.get(dtype, dtype) for dtype in (dot.lhs, dot.rhs))
    return (
        operands
        + (", sum" if dot.adds else "")
        + (", gathered" if dot.gathered else "")
        + (f", {_SCATTERED[dot.scattered]}" if dot.scattered else "")
    )


def _conclusion(observations: Observations) -> str:
    peak = as_chip(observations.chip).bf16_flops
    best = (
        f"{_dtypes(dots[0])} at most {max(_rate(observations, dot) for dot in dots) / peak:.0%}"
        for _, group in itertools.groupby(observations.dots, key=_dtypes)
        for dots in [list(group)]
    )
    return f"So of the peak of bf16, {peak / 1e12:.0f} Tflop/s, dots reach: {', '.join(best)}."
