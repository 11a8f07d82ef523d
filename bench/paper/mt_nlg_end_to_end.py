"""MT-NLG 530B on 64 chips, from tokens to tokens: the workloads of the FasterTransformer comparison
(section 5, appendix D)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bench.decoder_suite.phases import Phase
from bench.decoder_suite.steps import StepRow, Task
from bench.paper.rows import SLICE, Entry, entry

MODEL = "mt-nlg-530b"
# Pairs of tokens in and tokens out, of each sequence.
LENGTHS = ((20, 8), (60, 20), (128, 8))
BATCHES = (4, 16, 64, 256, 1024)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A batch of prompts, read and continued.

    Attributes:
      batch: sequences.
      tokens_in, tokens_out: tokens of each sequence.
      prefill, decode: the steps, each with its blocking and its best program.
      sample: the program that draws a token for every sequence.
    """

    batch: int
    tokens_in: int
    tokens_out: int
    prefill: Entry
    decode: Entry
    sample: Phase

    @property
    def tasks(self) -> list[Task]:
        """The programs compiled for it."""
        phases = (*self.prefill.phases, *self.decode.phases, self.sample)
        return [(phase, SLICE) for phase in phases]

    def seconds(self, rows: Mapping[Task, StepRow], which: str) -> float | None:
        """Seconds of the workload: a prefill, a step of decoding for each token but the first, and as
        many draws as tokens; embedding and unembedding included. None if a program does not fit.

        `which` is "blocking" or "best".
        """
        steps = [
            rows.get((phase, SLICE))
            for phase in (getattr(self.prefill, which), getattr(self.decode, which), self.sample)
        ]
        if any(row is None or row.refused for row in steps):
            return None
        prefill, decode, sample = (row.step_seconds for row in steps if row is not None)
        return prefill + (self.tokens_out - 1) * decode + self.tokens_out * sample


def workloads() -> list[Workload]:
    """Every batch with all lengths."""
    loads = []
    for tokens_in, tokens_out in LENGTHS:
        for batch in BATCHES:
            prefill = Phase(MODEL, "prefill", batch, tokens_in, "bf16", attention="heads")
            decode = Phase(MODEL, "decode", batch, tokens_in + tokens_out, attention="heads")
            loads.append(
                Workload(
                    batch,
                    tokens_in,
                    tokens_out,
                    entry("", "", prefill, layouts_too=False),
                    entry("", "", decode, layouts_too=False),
                    Phase(MODEL, "sample", batch, 1),
                )
            )
    return loads
