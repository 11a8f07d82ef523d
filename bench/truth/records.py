"""A figure that somebody measured on a TPU, and the program that the ruler predicts for it."""

from __future__ import annotations

import dataclasses

from bench.truth.programs import Program, Step

LINKS, MEMORY, MODELS, PAPER = "links and collectives", "dots and HBM", "models", "paper"
GROUPS = (LINKS, MEMORY, MODELS, PAPER)
# Seconds of one unit of time; work of one unit of a rate, in bytes/s or flop/s.
_TIMES = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_RATES = {"GB/s": 1e9, "TFLOP/s": 1e12}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a figure was published.

    Attributes:
      name: the publication.
      how: how it measured, as far as it says.
    """

    name: str
    how: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.how}" if self.how else self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One measured figure.

    Attributes:
      group: one of `GROUPS`.
      label: what was measured, in a table.
      source: who measured it.
      target: the slice, such as "v5e:4x4".
      program: what is compiled for the slice; it holds the shapes, dtypes and layouts.
      measured: the published figure.
      unit: its unit: us, ms or s of one run, or GB/s or TFLOP/s of `program.work`.
      options: compiler options that it was measured under.
      upper_bound: whether it is wall-clock time, with the host's part, that only bounds the time
        on the device from above.
      quick: whether it is in the quick table.
      public_ms: ms of one run that the ruler predicted for the public program itself; None if it
        was not compiled. `models.PUBLIC_VERSIONS` has the versions.
    """

    group: str
    label: str
    source: Source
    target: str
    program: Program | Step
    measured: float
    unit: str
    options: tuple[tuple[str, bool | int | str], ...] = ()
    upper_bound: bool = False
    quick: bool = True
    public_ms: float | None = None

    @property
    def measured_seconds(self) -> float:
        """Seconds of one run.

        Raises ValueError if the unit is unknown, or a rate of a program without work.
        """
        if self.unit in _TIMES:
            return self.measured * _TIMES[self.unit]
        if self.unit not in _RATES or isinstance(self.program, Step):
            known = ", ".join((*_TIMES, *_RATES))
            raise ValueError(f"{self.label}: unit {self.unit!r} must be one of {known}")
        return self.program.work / (self.measured * _RATES[self.unit])

    @property
    def bundles(self) -> bool:
        """Whether its program is predicted by the bundles that it issues; see `Step`."""
        return isinstance(self.program, Step) and self.program.bundles
