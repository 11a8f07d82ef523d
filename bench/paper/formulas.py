"""The results of the paper that are formulas: no program is compiled for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import layouts
from bench.decoder_suite.phases import VARIANTS
from bench.paper import published
from collective_einsum import TPU_V4
from collective_einsum.ruler.replay import markdown_table
from layouts import Plan, paper_closed_forms, plan
from layouts.cost import cache_bytes, load
from layouts.mesh import AXES
from layouts.partitionings import padded_capacity

SIZES: Mapping[str, int] = {"x": 4, "y": 4, "z": 4}
# Figure 3: tokens, d_model and d_ff.
TOKENS, D_MODEL, D_FF = 2048, 16384, 65536


def volumes(tokens: float) -> dict[str, float]:
    """Bytes that a chip sends in the feedforward of figure 3, by layout."""
    sent = {"WS 2D": paper_closed_forms.weight_stationary_2d(tokens, D_MODEL, D_FF, SIZES)}
    for count in range(1, len(AXES) + 1):
        axes = AXES[:count]
        sent[f"WG {''.join(axes).upper()}"] = paper_closed_forms.weight_gathered(
            tokens, D_MODEL, D_FF, SIZES, axes
        )
    return sent


def longest_context(attention: str, batch: int) -> float:
    """Positions that fit in `CACHE_FRACTION` of a chip's memory."""
    multihead = dataclasses.replace(
        VARIANTS["palm-540b multihead"], layers=layouts.PALM_540B.layers
    )
    config = multihead if attention == "multihead" else layouts.PALM_540B
    layout = layouts.BatchSharded() if attention.endswith("batch") else layouts.HeadSharded()
    partitioning = layouts.Partitioning(layouts.WeightStationary2D(), layout)
    # The fewest positions that are stored without padding.
    stored = padded_capacity(1)
    asked = load("decode", batch=batch, context=stored)
    position = cache_bytes(config, partitioning, SIZES, asked) / stored
    return published.CACHE_FRACTION * TPU_V4.hbm_bytes / position


def conclusions() -> list[tuple[str, str, Plan]]:
    """The paper's choices for PaLM 540B on 64 chips, in words, and the plans of `plan`."""
    asked: list[tuple[str, str, dict[str, Any]]] = [
        (
            "decode, batch 512",
            "2D weight-stationary, attention over batch",
            {"phase": "decode", "batch": 512, "context": 2048},
        ),
        (
            "decode, batch 64, int8",
            "2D weight-stationary, attention over batch",
            {"phase": "decode", "batch": 64, "context": 2048, "weights": "int8"},
        ),
        (
            "prefill, batch 512",
            "weight-gathered XYZ, attention over batch",
            {"phase": "prefill", "batch": 512, "length": 2048},
        ),
        (
            "prefill, batch 1, int8",
            "2D weight-stationary, attention over heads",
            {"phase": "prefill", "batch": 1, "length": 2048, "weights": "int8"},
        ),
    ]
    return [
        (name, words, plan(layouts.PALM_540B, mesh_shape=(4, 4, 4), **arguments))
        for name, words, arguments in asked
    ]


def prefill_crossovers(batches: Sequence[int] = (4, 16, 64, 256, 512)) -> list[tuple[int, str]]:
    """The feedforward layout that `plan` chooses for prompts of 2048 tokens, PaLM 540B, bf16."""
    chosen = []
    for batch in batches:
        best = plan(
            layouts.PALM_540B, mesh_shape=(4, 4, 4), phase="prefill", batch=batch, length=2048
        )
        chosen.append((batch, best.best.feedforward if best.feasible else "none fits"))
    return chosen


def sections() -> list[str]:
    """The Markdown of all results that are formulas."""
    return [_figure_3(), _table_1(), _conclusions()]


def document() -> dict[str, object]:
    """The numbers of all sections."""
    return {
        "volumes": volumes(TOKENS),
        "crossovers": paper_closed_forms.crossovers(D_MODEL, D_FF, SIZES),
        "longest_context": {
            f"{attention}, batch {batch}": longest_context(attention, batch)
            for attention, batch in published.LONGEST_CONTEXT
        },
        "prefill_crossovers": prefill_crossovers(),
    }


def _figure_3() -> str:
    sent, crossings = volumes(TOKENS), paper_closed_forms.crossovers(D_MODEL, D_FF, SIZES)
    rows = [
        (
            f"{name}, GB at {TOKENS} tokens",
            f"{ours / 1e9:.4g}",
            f"{published.VOLUMES[name] / 1e9:.4g}",
        )
        for name, ours in sent.items()
    ]
    rows += [
        (f"tokens from which WG {name} sends least", f"{ours:,.0f}", f"{theirs:,}")
        for (name, ours), theirs in zip(
            crossings.items(), published.CROSSOVERS.values(), strict=True
        )
    ]
    table = markdown_table(("", "formula", "published"), rows)
    return f"## Figure 3: bytes that a chip sends in a feedforward layer\n\n{table}"


def _table_1() -> str:
    rows = [
        (
            f"{attention}, batch {batch}",
            f"{longest_context(attention, batch):,.0f}",
            f"{theirs:,}",
            f"{longest_context(attention, batch) / theirs:.3f}",
        )
        for (attention, batch), theirs in published.LONGEST_CONTEXT.items()
    ]
    table = markdown_table(("", "formula", "published", "ratio"), rows)
    return (
        "## Table 1: longest context with 30% of memory for the cache, PaLM 540B on 64 chips\n\n"
        f"{table}"
    )


def _conclusions() -> str:
    rows = []
    for name, words, planned in conclusions():
        best = planned.best
        rows.append((name, words, f"{best.feedforward}, {best.attention}"))
    chosen = ", ".join(f"{batch}: {layout}" for batch, layout in prefill_crossovers())
    table = markdown_table(("PaLM 540B, 64 chips", "the paper", "`layouts.plan`"), rows)
    return (
        f"## The paper's choices and the planner's\n\n{table}\n\n"
        "WS 2D batch is 2D weight-stationary with token-sharded activations: the same bytes. "
        f"For prompts of 2048 tokens in bf16 the planner chooses by batch: {chosen}. By figure 3's "
        "formula, which counts bytes of the feedforward alone, WG X begins at "
        "a batch of 8, WG XY at 32 and WG XYZ at 384. "
        "The order is the same; the planner comes to WG XYZ sooner where the matmuls hide the "
        "gathering of weights and nothing hides the collectives of activations, which WG XYZ has none "
        "of."
    )
