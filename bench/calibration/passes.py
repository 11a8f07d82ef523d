"""The memory passes of a calibration: the programs that show them, and what the compiler made."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp

import collective_einsum as ce
from bench.calibration.programs import DEVICES, LAYERS, lower_einsums, mesh_of, scaled
from collective_einsum.chips import PassKind, PassObservation
from collective_einsum.ruler.compile import Target
from collective_einsum.ruler.replay import Timeline, replay

_ROWS = (8, 64, 512, 2048)
_CONTRACTED = 1152
_INT8_ROWS = 64  # of the activations that int8 weights meet

# The schedule that has the pass.
_SCHEDULES: dict[PassKind, str | ce.Schedule] = {
    "add": "unidirectional",
    "add int8": "unidirectional",
    "add halves": "bidirectional",
    "slice": "blocking",
    "move": ce.Schedule("chunked", chunks=1),
    "exchange": ce.Schedule("chunked", "async"),
    "copy int8": "unidirectional",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pass:
    """A memory pass over an array [rows, columns]; see `collective_einsum.chips.PassObservation`."""

    kind: PassKind
    rows: int
    columns: int

    @property
    def is_narrow(self) -> bool:
        """Whether it moves elements of less than 16 bits, so that its bundles are counted."""
        return self.kind in ("add int8", "copy int8")

    def lower(self, slice_: Target) -> jax.stages.Lowered:
        """The program: a loop over a stack of weights, with one einsum each."""
        return lower_einsums(self._einsum, slice_, *self._operands)

    def observed(self, slice_: Target, text: str) -> PassObservation:
        """The observation of the pass in the text of its compiled program."""
        chip = slice_.chip
        assert chip is not None
        timeline = replay(text, mesh_of(slice_))
        times = LAYERS * (DEVICES - 1 if self.kind in ("add", "add int8") else 1)
        seconds = (timeline.compute_seconds - timeline.dot_seconds) / times
        return PassObservation(
            **vars(self),
            bytes=self._bytes,
            cycles=max(1, round(seconds * chip.clock_hz)),
            source="bundles" if self.is_narrow else "estimate",
            lowered=self._lowered(timeline, text),
        )

    def _lowered(self, timeline: Timeline, text: str) -> str:
        """What the compiler made of lax's collective, or when it copies."""
        if self.kind == "slice":
            found = re.search(r"\b(reduce-scatter|all-reduce)(-start)?\(", text)
            return found[1] if found else ""
        if self.kind != "copy int8":
            return ""
        computed = (e for e in timeline.events if e.row == "compute" and e.kind != "dot")
        copy = max(computed, key=lambda event: event.seconds)
        hops = (event for event in timeline.events if event.kind == "permute")
        during = any(hop.start <= copy.start < hop.start + hop.seconds for hop in hops)
        return "during a hop" if during else ""

    def _einsum(self, x: jax.Array, w: jax.Array) -> jax.Array:
        schedule = _SCHEDULES[self.kind]
        if self.kind == "copy int8":
            return ce.all_gather_einsum(
                "me,ef->mf", x, scaled(x, w), axis_name="x", gather="e", schedule=schedule
            )
        return ce.einsum_reduce_scatter(
            "me,ef->mf", x, w, axis_name="x", scatter="f", schedule=schedule
        )

    @property
    def _operands(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """The activations, and the stack of weights."""
        bf16 = jnp.bfloat16
        if self.kind == "copy int8":
            return (
                jax.ShapeDtypeStruct((_INT8_ROWS, self.rows // DEVICES), bf16),
                jax.ShapeDtypeStruct((LAYERS, self.rows, self.columns), jnp.int8),
            )
        weights = jnp.int8 if self.is_narrow else bf16
        return (
            jax.ShapeDtypeStruct((self.rows, _CONTRACTED), bf16),
            jax.ShapeDtypeStruct((LAYERS, _CONTRACTED, self.columns), weights),
        )

    @property
    def _bytes(self) -> int:
        elements = self.rows * self.columns
        if self.kind == "copy int8":
            return elements
        if self.kind.startswith("add"):
            # Of each block, a sum of 32 bits and what arrived in 16 are read, 16 bits are written.
            blocks = DEVICES - 1 if self.kind == "add halves" else 1
            return blocks * elements // DEVICES * (4 + 2 + 2)
        return 2 * elements


def passes() -> list[Pass]:
    """The memory passes that are observed."""
    kinds: tuple[PassKind, ...] = ("add", "add int8", "add halves", "slice", "move", "exchange")
    split = [Pass(kind=kind, rows=rows, columns=4608) for kind in kinds for rows in _ROWS]
    copied = ((4608, 1152), (4608, 4608), (18432, 4608))
    return [*split, *(Pass(kind="copy int8", rows=m, columns=n) for m, n in copied)]
