"""`python -m bench layers` where programs can run: a small decoder, checked and timed for real."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import layouts
from bench.decoder_suite.phases import ATTENTIONS, FEEDFORWARDS
from collective_einsum.ruler.compile import Target
from collective_einsum.ruler.replay import legend, table
from layouts import ModelConfig, Partitioning
from layouts.mesh import AXES
from layouts.models import TINY_MULTIQUERY, Params
from layouts.partitionings import misfit
from layouts.reference import decode_step as plain_decode_step
from layouts.reference import prefill as plain_prefill

STEPS = 3
# The largest error allowed, as a fraction of the largest logit; the float32 sums of the reference have
# another order.
TOLERANCE = 1e-4
REPEATS = 5


@dataclasses.dataclass(frozen=True)
class RunRow:
    """One pair of layouts, run here.

    Attributes:
      feedforward, attention: names of the layouts.
      error: largest difference of logits after a prefill and some decode steps, over the largest logit.
      prefill_seconds, decode_seconds: measured times of a prefill and of a decode step, each the
        fastest of several runs.
    """

    feedforward: str
    attention: str
    error: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def passed(self) -> bool:
        """Whether the error is small enough."""
        return self.error <= TOLERANCE


@dataclasses.dataclass(frozen=True)
class Case:
    """A small decoder for a mesh, whose sizes divide over it under any layout.

    Attributes:
      config: the model.
      sizes: sizes of the mesh axes.
      batch: sequences.
      prompt: tokens of a sequence.
    """

    config: ModelConfig
    sizes: Mapping[str, int]
    batch: int
    prompt: int

    @classmethod
    def on(cls, chips: int) -> Case:
        """The case for `chips` devices, or for the largest power of two that divides `chips`."""
        sizes, place = dict.fromkeys(AXES, 1), 0
        while chips % 2 == 0:
            sizes[AXES[place % 3]] *= 2
            chips, place = chips // 2, place + 1
        least = max(8, 2**place)
        config = dataclasses.replace(
            TINY_MULTIQUERY,
            d_model=4 * least,
            d_ff=8 * least,
            heads=least,
            d_head=max(TINY_MULTIQUERY.d_head, sizes["x"]),
            vocab=8 * least,
        )
        return cls(config, sizes, least, least)

    def pairs(self) -> list[tuple[str, str]]:
        """Names of layouts: every feedforward, and with the first of them every attention."""
        # On one device all layouts are the same.
        names = list(FEEDFORWARDS)[: None if max(self.sizes.values()) > 1 else 1]
        first = [(names[0], attention) for attention in ATTENTIONS if len(names) > 1]
        fitting = [next(filter(self._fits, ((name, a) for a in ATTENTIONS))) for name in names]
        return list(dict.fromkeys([*first, *fitting]))

    def plans(self, pair: tuple[str, str]) -> tuple[Partitioning, Partitioning]:
        """The partitionings of prefill and decode; they differ where prefill shards positions, since a
        decode step has only one."""
        prefill = Partitioning(FEEDFORWARDS[pair[0]], ATTENTIONS[pair[1]])
        if not prefill.feedforward.position_axes:
            return prefill, prefill
        return prefill, dataclasses.replace(prefill, feedforward=layouts.WeightStationary2D())

    def _fits(self, pair: tuple[str, str]) -> bool:
        return not any(misfit(self.config, self.sizes, plan) for plan in self.plans(pair))


def run(target: Target) -> Iterator[RunRow]:
    """Runs prefill and some decode steps of a `Case` under each of its pairs of layouts, and compares
    them with the reference; yields each pair as it is done."""
    case = Case.on(len(target.devices))
    config, mesh = case.config, target.mesh(tuple(case.sizes.values()), AXES)
    params = layouts.init(config, mesh, jax.random.key(0), jnp.float32)
    tokens = np.random.default_rng(0).integers(
        0, config.vocab, (case.batch, case.prompt + STEPS), dtype=np.int32
    )
    want = _expected(case, params, tokens)
    for pair in case.pairs():
        logits, prefilling, decoding = _steps(case, mesh, params, tokens, pair)
        error = float(np.abs(logits - want).max() / np.abs(want).max())
        yield RunRow(*pair, error, prefilling, decoding)


def _expected(case: Case, params: Params, tokens: np.ndarray) -> np.ndarray:
    """The last logits of the reference, which runs on one device."""
    local, config = jax.device_get(params), case.config
    lengths = jnp.full((case.batch,), case.prompt, jnp.int32)
    prompt = jnp.asarray(tokens[:, : case.prompt])
    logits, cache = plain_prefill(local, config, prompt, lengths, tokens.shape[1])
    for token in tokens[:, case.prompt :].T:
        logits, cache = plain_decode_step(local, config, jnp.asarray(token), cache)
    return np.asarray(logits)


def _steps(
    case: Case, mesh: Mesh, params: Params, tokens: np.ndarray, pair: tuple[str, str]
) -> tuple[np.ndarray, float, float]:
    """Returns the last logits, and the seconds of the fastest prefill and of the fastest decode step."""
    config, (reader, plan) = case.config, case.plans(pair)
    prefills, decodes = [], []
    logits = jnp.zeros(())
    for _ in range(REPEATS):
        cache = layouts.init_cache(
            config, mesh, case.batch, tokens.shape[1], plan=reader, dtype=jnp.float32
        )
        start = time.perf_counter()
        logits, cache = layouts.prefill(
            config, mesh, params, cache, tokens[:, : case.prompt], plan=reader
        )
        jax.block_until_ready(logits)
        prefills.append(time.perf_counter() - start)
        cache = layouts.move_cache(config, mesh, cache, plan)
        for token in tokens[:, case.prompt :].T:
            start = time.perf_counter()
            logits, cache = layouts.decode_step(config, mesh, params, cache, token, plan=plan)
            jax.block_until_ready(logits)
            decodes.append(time.perf_counter() - start)
    return np.asarray(logits), min(prefills), min(decodes)


def print_rows(rows: list[RunRow], target: Target) -> str:
    """Formats the rows as a table."""
    head = ("measured", "attention", "error", "prefill ms", "decode ms", "")
    cells = [
        (
            row.feedforward,
            row.attention,
            f"{row.error:.1e}",
            f"{row.prefill_seconds * 1e3:.2f}",
            f"{row.decode_seconds * 1e3:.2f}",
            "" if row.passed else "WRONG",
        )
        for row in rows
    ]
    kind, sizes = target.devices[0].device_kind, Case.on(len(target.devices)).sizes
    sides = "x".join(str(size) for size in sizes.values())
    title = f"a mesh {sides} of {kind}, a small model, in float32"
    wrong = sum(not row.passed for row in rows)
    ending = f"{wrong} differ from the reference." if wrong else "all are right."
    meanings = {
        "measured": "layout of the feedforward",
        "attention": "layout of attention and of the cache",
        "error": "largest difference from the reference's logits, over the largest logit; "
        f"{TOLERANCE:.0e} is allowed",
        "prefill ms": f"the fastest of {REPEATS} prefills",
        "decode ms": "the fastest decode step",
    }
    return "\n".join(
        [title, table(head, cells), "", legend(meanings), f"{len(rows)} pairs of layouts: {ending}"]
    )
