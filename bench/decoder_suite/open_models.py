"""`python -m bench models`: decoding with open models, on slices: what the planner chooses, whether it
fits, and what a replay of the chosen program predicts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import layouts
from bench.decoder_suite.phases import Phase, mfu
from bench.decoder_suite.steps import StepRow, step_all
from collective_einsum.ruler.compile import target
from collective_einsum.ruler.replay import legend, table, wrapped
from layouts.mesh import shape_name

MODELS = (
    *("llama-3.1-70b", "qwen3-32b", "gemma-3-27b"),
    *("mixtral-8x22b", "gpt-oss-120b", "qwen3-235b-a22b"),
)
SLICES = ("v5e:4x4", "v6e:4x4", "v5p:4x4x4", "v4:4x4x4")
WEIGHTS = ("bf16", "int8")
BATCH, CONTEXT = 32, 4096


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the planner says of a model on a slice.

    Attributes:
      model, target: names of both.
      weights: the first of `WEIGHTS` that fit, or the last.
      plan: the planner's options.
      phase: the step of the best one; None if none will do.
    """

    model: str
    target: str
    weights: str
    plan: layouts.Plan
    phase: Phase | None


@dataclasses.dataclass(frozen=True)
class ModelRow:
    """A model on a slice, predicted.

    Attributes:
      model, target, weights: as of `Choice`.
      layouts: of the feedforward and attention, and the mesh, as words.
      limit_seconds: of a step that reads weights and cache once, or of its flops, at the chip's peaks.
      model_seconds: a step by the analytical model.
      replay_seconds: the same by a replay of the compiled step.
      mfu: model FLOPS utilization of the replay, of the layers' parameters.
      chip_bytes: memory of a chip, by the compiler.
      refused: why it does not fit; numbers are 0 then.
    """

    model: str
    target: str
    weights: str
    layouts: str = ""
    limit_seconds: float = 0.0
    model_seconds: float = 0.0
    replay_seconds: float = 0.0
    mfu: float = 0.0
    chip_bytes: int = 0
    refused: str = ""


def choose(
    model: str,
    slice_: str,
    batch: int = BATCH,
    context: int = CONTEXT,
    weights: str | None = None,
    *,
    int8_cache: bool = False,
    unrolled: bool = False,
) -> Choice:
    """The planner's choice for decoding on all chips of a slice, over all meshes of them, each with the
    heads and tokens that it needs.

    Args:
      model: name of a model of `layouts.model`.
      slice_: such as "v5e:4x4".
      batch: sequences.
      context: positions in the cache.
      weights: one of `WEIGHTS`; the first that fit unless given.
      int8_cache: whether keys and values are int8.
      unrolled: whether each layer's weights are arrays of their own.

    Raises:
      ValueError: there is no such model or slice.
    """
    where = target(slice_)
    assert where.chip is not None
    tried = WEIGHTS if weights is None else (weights,)
    for kind in tried:
        found = layouts.padded_plan(
            model,
            chip=where.chip,
            chips=len(where.devices),
            phase="decode",
            batch=batch,
            context=context,
            weights=kind,
            cache="int8" if int8_cache else "bf16",
        )
        if found.feasible:
            best = found.best
            sides = tuple(best.sizes.values())
            words = (kind, best.feedforward, best.attention)
            phase = Phase(
                *(model, "decode", batch, context, *words),
                sides=sides,
                int8_cache=int8_cache,
                unrolled=unrolled,
            )
            return Choice(model, slice_, kind, found, phase)
    return Choice(model, slice_, tried[-1], found, None)


def measure_all(
    choices: Sequence[Choice], cache_directory: str | os.PathLike[str], workers: int = 2
) -> Iterator[tuple[int, ModelRow]]:
    """Compiles and replays the steps; yields places and rows as they finish."""
    places = [place for place, choice in enumerate(choices) if choice.phase is not None]
    for place, choice in enumerate(choices):
        if choice.phase is None:
            yield place, _row(choice, refused=choice.plan.nearest)
    tasks = [(c.phase, c.target) for c in choices if c.phase is not None]
    for done, step in step_all(tasks, cache_directory, workers, by_bundles=True):
        yield places[done], _replayed(choices[places[done]], step)


def _row(choice: Choice, **found: Any) -> ModelRow:
    return ModelRow(choice.model, choice.target, choice.weights, **found)


def _replayed(choice: Choice, step: StepRow) -> ModelRow:
    best, chip = choice.plan.best, choice.plan.chip
    found = {"layouts": f"{best.feedforward}, {best.attention}, {shape_name(best.sizes)}"}
    if step.refused:
        return _row(choice, **found, refused=step.refused)
    return _row(
        choice,
        **found,
        limit_seconds=choice.plan.cost.limit_seconds,
        model_seconds=choice.plan.cost.step_seconds,
        replay_seconds=step.step_seconds,
        mfu=mfu(step.phase, best.chips, chip.bf16_flops, step.step_seconds),
        chip_bytes=step.chip_bytes,
    )


_MEANINGS = {
    "slice": "its chips, all of them",
    "weights": "bf16, or int8 where those do not fit",
    "layouts": "of the feedforward and of attention, and the mesh x, y, z: the planner's choice",
    "limit ms": "counted: weights and cache of the layers once from HBM, or their flops if these take "
    "longer, at the chip's peaks; no step is faster",
    "model ms": "a token of every sequence, predicted by the analytical model",
    "replay ms": "the same, predicted by a replay of the compiled step, with int8 weights or an int8 "
    "cache by the bundles that it issues",
    "MFU": "of the replay: flops of the layers' parameters that a token uses over the bf16 peak",
    "GiB": "memory, GiB a chip, by the compiler",
}


def print_rows(rows: Sequence[ModelRow], batch: int = BATCH, context: int = CONTEXT) -> str:
    """Formats the rows as a table; below it what does not fit, and the columns' meaning."""
    head = (f"decode {batch} x {context}", *_MEANINGS)
    cells, notes = [], [""]
    for row in rows:
        if row.refused:
            notes += wrapped(f"{row.model} on {row.target}, {row.weights}: {row.refused}")
            continue
        cells.append(
            (
                row.model,
                row.target,
                row.weights,
                row.layouts,
                f"{row.limit_seconds * 1e3:.2f}",
                f"{row.model_seconds * 1e3:.2f}",
                f"{row.replay_seconds * 1e3:.2f}",
                f"{row.mfu:.1%}",
                f"{row.chip_bytes / 2**30:.1f}",
            )
        )
    return "\n".join([table(head, cells), *notes, "", legend(_MEANINGS)])
