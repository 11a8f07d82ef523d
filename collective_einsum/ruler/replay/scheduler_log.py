"""The TPU scheduler's own account of a schedule, from its log: a second prediction next to the replay.

XLA:TPU's latency-hiding scheduler logs, for every computation with asynchronous ops in it, the cycles
that it expects to waste waiting for them, and all cycles. Synchronous collectives are not among
them, a loop's body is counted once, and dots cost more than in the replay on chips with two
cores, so the two predictions are comparable in sign only.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping

from collective_einsum.ruler.compile.targets import LIBTPU_ENVIRONMENT
from collective_einsum.ruler.replay.tables import table

_LOGGING = {
    "TPU_STDERR_LOG_LEVEL": "0",
    "TPU_MIN_LOG_LEVEL": "0",
    "TPU_VMODULE": "latency_hiding_scheduler=1",
    # XLA does not schedule a program that jax takes from its compilation cache.
    "JAX_ENABLE_COMPILATION_CACHE": "false",
}
_CHILD = """
import importlib, json, sys
sys.path[:0] = json.loads(sys.argv[1])
module, _, function = sys.argv[2].partition(":")
getattr(importlib.import_module(module), function)(*json.loads(sys.argv[3]))
"""
_LINE = re.compile(r"latency_hiding_scheduler\.cc:\d+\] (.*)")
_COMPUTATION = re.compile(r"For computation: (\S+), module (\S+)")
_CYCLES = re.compile(r"(Total wasted cycles|Wasted cycles for ([\w -]+)|Total cycles): ([\d.e+]+)")


@dataclasses.dataclass(frozen=True)
class ComputationVerdict:
    """The scheduler's account of one computation, in cycles, after scheduling.

    `wasted_before` are the cycles wasted in the order before scheduling.
    """

    computation: str
    wasted_cycles: float
    total_cycles: float
    wasted_before: float
    wasted_by_kind: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The scheduler's account of a module; empty if it has no asynchronous ops to schedule."""

    computations: tuple[ComputationVerdict, ...]

    @property
    def wasted_cycles(self) -> float:
        """Cycles spent waiting, every computation counted once."""
        return sum(verdict.wasted_cycles for verdict in self.computations)

    @property
    def total_cycles(self) -> float:
        """All cycles, every computation counted once."""
        return sum(verdict.total_cycles for verdict in self.computations)

    def __str__(self) -> str:
        if not self.computations:
            return "the scheduler says nothing: there are no asynchronous ops"
        rows = [
            (
                verdict.computation,
                f"{verdict.wasted_before:.0f}",
                f"{verdict.wasted_cycles:.0f}",
                f"{verdict.total_cycles:.0f}",
            )
            for verdict in self.computations
        ]
        return table(("scheduler's cycles", "wasted before", "wasted", "total"), rows)


def scheduler_verdict(entry: str, *args: object, timeout_seconds: float = 300) -> Verdict:
    """Compiles one program in a process of its own and reads its scheduler's log.

    Args:
      entry: "module:function" that compiles one program for a TPU topology when called.
      args: its arguments; anything that JSON can carry.
      timeout_seconds: seconds after which the process is ended.

    Raises:
      ValueError: if `entry` is not of that form.
      RuntimeError: if the process fails; the end of its output is in the message.
    """
    if not re.fullmatch(r"[\w.]+:\w+", entry):
        raise ValueError(f"entry {entry!r} must be 'module:function'.")
    paths = [path or os.getcwd() for path in sys.path]
    process = subprocess.run(
        [sys.executable, "-c", _CHILD, json.dumps(paths), entry, json.dumps(args)],
        env={**LIBTPU_ENVIRONMENT, **os.environ, **_LOGGING},
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
    )
    if process.returncode:
        raise RuntimeError(
            f"compiling {entry} for the scheduler's verdict failed with exit status "
            f"{process.returncode}: {process.stderr[-2000:]}"
        )
    return parse_verdict(process.stderr)


def parse_verdict(log: str) -> Verdict:
    """Reads the scheduler's statistics from a log of libtpu."""
    before: dict[str, dict[str, float]] = collections.defaultdict(dict)
    after: dict[str, dict[str, float]] = collections.defaultdict(dict)
    section, computation = before, ""
    for match in _LINE.finditer(log):
        text = match[1]
        if "Statistics before scheduling" in text:
            section = before
        elif "Statistics after scheduling" in text:
            section = after
        elif named := _COMPUTATION.match(text):
            computation = named[1]
        elif cycles := _CYCLES.match(text):
            section[computation][cycles[2] or cycles[1]] = float(cycles[3])
    return Verdict(
        tuple(
            ComputationVerdict(
                computation=name,
                wasted_cycles=cycles.pop("Total wasted cycles", 0.0),
                total_cycles=cycles.pop("Total cycles", 0.0),
                wasted_before=before[name].get("Total wasted cycles", 0.0),
                wasted_by_kind={kind: wasted for kind, wasted in cycles.items() if wasted},
            )
            for name, cycles in after.items()
        )
    )
